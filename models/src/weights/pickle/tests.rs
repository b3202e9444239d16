//! Checkpoints that PyTorch wrote (`fixtures/make.py`, the recorded ones), ones that lie, and ones that are damaged at
//! every place.

use std::fs;

use super::*;
use crate::weights::SafetensorsFile;

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity/checkpoints")
}

fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn files(folder: &Path, belongs: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths.filter(|p| belongs(p.file_name().unwrap().to_str().unwrap())).collect();
    found.sort();
    found
}

/// All checkpoints with the tensors they must hold: `<x>_….pth` and `<x>.expected.safetensors`.
fn checkpoints() -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for folder in [recorded(), own()] {
        for expected in files(&folder, |n| n.ends_with(".expected.safetensors")) {
            let name = expected.file_name().unwrap().to_str().unwrap();
            let stem = format!("{}_", name.strip_suffix(".expected.safetensors").unwrap());
            let before = found.len();
            for path in files(&folder, |n| n.starts_with(&stem) && (n.ends_with(".pth") || n.ends_with(".pth.tar"))) {
                found.push((path, expected.clone()));
            }
            assert!(found.len() > before, "nothing belongs to {name}");
        }
    }
    found
}

/// Opens a checkpoint and reads every tensor; gives the number of bytes they have.
fn read_all(bytes: &[u8]) -> std::result::Result<usize, String> {
    let checkpoint = read(Path::new("x.pth"), Bytes::Memory(bytes.to_vec()), None)?;
    checkpoint.names().iter().map(|name| Ok(checkpoint.tensor(name).map_err(|e| e.to_string())?.data.len())).sum()
}

#[test]
fn checkpoints_of_pytorch_hold_exactly_the_expected_tensors() {
    let checkpoints = checkpoints();
    assert!(checkpoints.len() >= 20);
    for (path, expected) in checkpoints {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let expected = SafetensorsFile::open(&expected).unwrap();
        let (mut got, mut want) = (checkpoint.names(), expected.names());
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "{}", path.display());
        for name in got {
            let (got, want) = (checkpoint.tensor(name).unwrap(), expected.tensor(name).unwrap());
            assert_eq!(got, want, "{name} of {}", path.display());
        }
    }
}

#[test]
fn texts_and_numbers_beside_the_state_dict_are_told() {
    let checkpoint = Checkpoint::open(&own().join("moco_v1.pth.tar")).unwrap();
    assert_eq!((checkpoint.text("arch"), checkpoint.integer("epoch")), (Some("resnet18"), Some(200)));
    assert!(checkpoint.has("optimizer") && !checkpoint.has("args"));
    assert_eq!((checkpoint.state_dict_key(), checkpoint.packing()), (Some("state_dict"), Packing::Legacy));
}

#[test]
fn every_kind_of_bad_checkpoint_is_refused_for_its_reason() {
    let reasons = [
        ("refused_big_endian_zip", "big-endian"),
        ("refused_big_endian_legacy", "big-endian"),
        ("refused_missing_storage", "`packed_zip/data/0` is missing"),
        ("refused_short_storage", "has 4 bytes, its tensors expect 6400"),
        ("refused_unsupported_compression", "packed by method 14"),
        ("refused_module", "Linear"),
        ("refused_bare_tensor", "holds a tensor, expected a dict"),
        ("refused_two_state_dicts", "several state dicts (`a`, `b`)"),
        ("refused_complex", "ComplexFloatStorage"),
        ("refused_sparse", "_rebuild_sparse_tensor"),
        ("refused_quantised", "_rebuild_qtensor"),
        ("refused_torchscript", "TorchScript"),
        ("refused_no_tensors", "holds no tensor"),
        ("refused_plain_pickle", "not one of torch.save"),
        ("refused_call_eval", "eval"),
        ("refused_call_getattr", "getattr"),
        ("refused_call_system", "system"),
        ("refused_call_import", "__import__"),
        ("refused_call_load", "torch.serialization.load"),
        ("refused_call_path_call", "Path.touch"),
    ];
    let refused = files(&own(), |n| n.starts_with("refused_"));
    assert_eq!(refused.len(), reasons.len());
    for (name, reason) in reasons {
        let path = own().join(format!("{name}.pth"));
        let error = Checkpoint::open(&path).expect_err(name).to_string();
        assert!(error.contains(reason) && error.contains(name), "{name}: {error}");
    }
    assert!(!Path::new("moco-was-owned").exists());
}

#[test]
fn recorded_malicious_and_truncated_files_are_refused() {
    let malicious = files(&recorded(), |n| n.starts_with("malicious_"));
    assert!(malicious.len() >= 2);
    for path in malicious {
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains("it was not run here"), "{error}");
    }
    let truncated = files(&recorded(), |n| n.starts_with("truncated_"));
    assert!(truncated.len() >= 2);
    for path in truncated {
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains("truncated"), "{error}");
    }
}

#[test]
fn other_kinds_of_file_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth.tar");
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, reason) in
        [(&b""[..], "neither"), (b"hello", "neither"), (b"PK\x03\x04", "truncated"), (&tar, "tar archive")]
    {
        fs::write(&path, bytes).unwrap();
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn every_truncation_is_refused() {
    for (path, _) in checkpoints().into_iter().filter(|(p, _)| fs::metadata(p).unwrap().len() < 6000) {
        let bytes = fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            assert!(read_all(&bytes[..len]).is_err(), "{} cut at {len}", path.display());
        }
    }
}

#[test]
fn flipped_bits_never_panic_and_never_ask_for_much_memory() {
    for name in [
        "packed_zip.pth",
        "views_legacy_protocol2.pth",
        "views_zip_protocol4.pth",
        "clutter_legacy_protocol4.pth",
        "packed_deflated.pth",
    ] {
        let good = fs::read(own().join(name)).unwrap();
        // Every bit of the small files, one of each byte of the others.
        for bit in (0..good.len() * 8).step_by(if good.len() < 3000 { 1 } else { 7 }) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = read_all(&bytes) {
                assert!(read < 100 * good.len() + (1 << 20), "{name}, bit {bit}: {read} bytes");
            }
        }
    }
}

#[test]
fn random_bytes_and_random_opcodes_never_panic() {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    let opcodes =
        b"\x80\x02.(012NJKM\x88\x89\x8a\x8bGX\x8cTUCB])}\x8flt\x85\x86\x87d\x91aesu\x90qr\x94hjc\x93QR\x81\x92b";
    let good = fs::read(own().join("views_legacy_protocol2.pth")).unwrap();
    for round in 0..20_000 {
        let mut bytes = vec![0x80, 2];
        for _ in 0..random() % 60 {
            match random() % 4 {
                0 => bytes.push(random() as u8 % 8),
                1 => bytes.extend_from_slice(b"ccollections\nOrderedDict\n"),
                _ => bytes.push(opcodes[random() % opcodes.len()]),
            }
        }
        bytes.push(b'.');
        let _ = machine::run(&bytes, 0, &mut Heap::default());
        // Splices of a good file.
        let mut spliced = good.clone();
        for _ in 0..1 + round % 4 {
            let (at, from) = (random() % spliced.len(), random() % good.len());
            let (end, until) = (at + random() % 40, from + random() % 40);
            let part = good[from..until.min(good.len())].to_vec();
            spliced.splice(at..end.min(spliced.len()), part);
        }
        let mut heap = Heap::default();
        let _ = legacy::read(&spliced, &mut heap);
    }
}

/// A legacy stream around the opcodes of one object.
fn stream(object: &[u8]) -> Vec<u8> {
    let mut bytes =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02".to_vec();
    bytes.extend_from_slice(object);
    bytes.extend_from_slice(b".\x80\x02].");
    bytes
}

fn reason(object: &[u8]) -> String {
    read_all(&stream(object)).unwrap_err()
}

#[test]
fn lengths_that_lie_do_not_allocate() {
    assert!(reason(b"X\xff\xff\xff\xff").contains("truncated"));
    assert!(reason(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff").contains("truncated"));
    assert!(reason(b"\x8b\xff\xff\xff\xff").contains("truncated"));
    assert!(reason(b"r\xff\xff\xff\xff").contains("missing on the stack"));
    assert!(reason(b"j\xff\xff\xff\xff").contains("memo"));
}

#[test]
fn a_hundred_million_copies_are_refused() {
    // A list of 4096 pairs, and calls that would copy it a million times.
    let mut object = b"ccollections\nOrderedDict\nq\x00]q\x01(".to_vec();
    (0..4096).for_each(|_| object.extend_from_slice(b"K\x01K\x02\x86"));
    object.extend_from_slice(b"eq\x02");
    (0..100_000).for_each(|_| object.extend_from_slice(b"h\x00h\x02\x85R0"));
    assert!(reason(&object).contains("copy more than"));
}

#[test]
fn deep_nesting_and_cycles_neither_recurse_nor_loop() {
    let mut object = b")".to_vec();
    object.extend(std::iter::repeat_n(0x85, 1_000_000));
    assert!(reason(&object).contains("a tuple, expected a dict"));
    // d = {}; d["a"] = d; d["b"] = d
    assert!(reason(b"}q\x00(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u").contains("nest more than"));
    // l = []; l.append(l)
    assert!(reason(b"]q\x00h\x00a").contains("a list, expected a dict"));
}

/// A legacy file of {"x": _rebuild_tensor_v2(storage, offset, size, stride, False, {})} on the storage
/// (1.0, 2.0, 3.0, 4.0), whose persistent id ends with `view`.
fn tensor_file(view: &[u8], offset: &[u8], size: &[u8], stride: &[u8]) -> Vec<u8> {
    let mut object = b"}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    object.extend_from_slice(
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00aX\x03\x00\x00\x00cpuK\x04",
    );
    for part in [view, b"tQ", offset, size, stride, b"\x89}tRs"] {
        object.extend_from_slice(part);
    }
    let mut bytes = stream(&object);
    bytes.truncate(bytes.len() - 1);
    bytes.extend_from_slice(b"X\x01\x00\x00\x00aa.");
    bytes.extend_from_slice(&4u64.to_le_bytes());
    [1.0f32, 2.0, 3.0, 4.0].iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
    bytes
}

#[test]
fn views_of_storages_in_files_of_old_pytorch_are_read() {
    let view = |offset: u8, len: u8| {
        let view = [b"X\x01\x00\x00\x00vK", &[offset][..], b"K", &[len], b"\x87"].concat();
        let bytes = tensor_file(&view, b"K\x01", b"K\x02\x85", b"K\x01\x85");
        let checkpoint = read(Path::new("x.pth"), Bytes::Memory(bytes), None)?;
        let mut values = [0.0; 2];
        checkpoint.tensor("x").map_err(|e| e.to_string())?.write_f32(&mut values);
        Ok::<_, String>(values)
    };
    assert_eq!(view(1, 3), Ok([3.0, 4.0]));
    assert!(view(1, 2).unwrap_err().contains("outside"));
    assert!(view(2, 3).unwrap_err().contains("outside"));
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    let tensor = |offset: &[u8], size: &[u8], stride: &[u8]| read_all(&tensor_file(b"N", offset, size, stride));
    assert_eq!(tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85"), Ok(16));
    assert!(tensor(b"K\x01", b"K\x04\x85", b"K\x01\x85").unwrap_err().contains("outside"));
    assert!(tensor(b"K\x00", b"K\x04\x85", b"K\x02\x85").unwrap_err().contains("outside"));
    assert!(tensor(b"J\xff\xff\xff\xff", b"K\x04\x85", b"K\x01\x85").unwrap_err().contains("-1"));
    assert!(tensor(b"K\x00", b"K\x04\x85", b"K\x01K\x01\x86").unwrap_err().contains("strides"));
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let pair = [&huge[..], &huge[..], b"\x86"].concat();
    assert!(tensor(b"K\x00", &pair, b"K\x00K\x00\x86").unwrap_err().contains("larger than any memory"));
    let expanded = [&b"J\x00\x00\x00\x7f"[..], b"\x85"].concat();
    assert!(tensor(b"K\x00", &expanded, b"K\x00\x85").unwrap_err().contains("huge"));
}

#[test]
fn python_2_pickles_of_ordered_dicts_are_read() {
    // OrderedDict([["x", 1]]) with byte strings, as Python 2 pickles it: no tensor, but read to the end.
    let object = b"ccollections\nOrderedDict\n]](U\x01xK\x01ea\x85R";
    assert!(reason(object).contains("holds no tensor"), "{}", reason(object));
}

#[test]
fn a_zip_directory_that_lies_is_refused_before_memory_is_spent() {
    let good = fs::read(own().join("packed_deflated.pth")).unwrap();
    let end = good.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    let entry = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let lie = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        read_all(&bytes).unwrap_err()
    };
    assert!(lie(end + 10, b"\xff\xff").contains("claims 65535"));
    assert!(lie(end + 12, b"\xff\xff\xff\x7f").contains("larger than the file"));
    assert!(lie(end + 16, b"\xff\xff\xff\x7f").contains("not where it should be"));
    assert!(lie(end + 4, b"\x01\x00").contains("several parts"));
    assert!(lie(entry, b"PKPK").contains("damaged"));
    // The first entry is data.pkl: flags, method, checksum, packed size, size, place.
    assert!(lie(entry + 8, b"\x01\x00").contains("encrypted"));
    assert!(lie(entry + 10, b"\x0c\x00").contains("method 12"));
    assert!(lie(entry + 16, b"\x00\x00\x00\x00").contains("checksum"));
    assert!(lie(entry + 20, b"\xff\xff\xff\x7f").contains("not where it should be"));
    assert!(lie(entry + 24, b"\xff\xff\xff\x7f").contains("at most"));
    assert!(lie(entry + 42, b"\xff\xff\xff\x7f").contains("not where it should be"));
}
