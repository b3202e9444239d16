//! What data sets look like on disk, well formed and not.

use std::io::Write;
use std::path::Path;

use moco_image::{Axis, ValueRange};

use super::*;
use crate::data::testing::{idx, pixels, write_png};

fn open(path: &Path) -> Result<Dataset> {
    Dataset::open(path, &DataOptions::default())
}

fn names(dataset: &Dataset) -> Vec<String> {
    (0..dataset.len()).map(|i| dataset.name(i)).collect()
}

#[test]
fn first_level_folders_are_classes_in_sorted_order() {
    let root = tempfile::tempdir().unwrap();
    for (i, name) in ["cat/b.png", "cat/deep/er/a.png", "ant/z.PNG", "bee/1.png"].iter().enumerate() {
        write_png(&root.path().join(name), 4, 3, 3, i as u64);
    }
    std::fs::write(root.path().join("cat/.hidden.png"), b"x").unwrap();
    std::fs::write(root.path().join("cat/notes.txt"), b"x").unwrap();
    let dataset = open(root.path()).unwrap();
    assert_eq!(dataset.kind(), DatasetKind::ClassFolders);
    assert_eq!(dataset.class_names(), ["ant", "bee", "cat"]);
    assert_eq!(names(&dataset), ["ant/z.PNG", "bee/1.png", "cat/b.png", "cat/deep/er/a.png"]);
    assert_eq!((0..4).map(|i| dataset.label(i)).collect::<Vec<_>>(), [Some(0), Some(1), Some(2), Some(2)]);
    let image = dataset.load(2).unwrap();
    assert_eq!((image.width(), image.height(), image.data()), (4, 3, &pixels(36, 0)[..]));
}

#[test]
fn files_beside_folders_or_one_folder_alone_have_no_labels() {
    let root = tempfile::tempdir().unwrap();
    write_png(&root.path().join("a/x/1.png"), 4, 4, 3, 0);
    let dataset = open(root.path()).unwrap();
    assert_eq!((dataset.kind(), dataset.label(0)), (DatasetKind::Files, None));
    write_png(&root.path().join("b/2.png"), 4, 4, 3, 0);
    write_png(&root.path().join("0.png"), 4, 4, 3, 0);
    let dataset = open(root.path()).unwrap();
    assert_eq!((dataset.kind(), dataset.len(), dataset.class_names().len()), (DatasetKind::Files, 3, 0));
    let options = DataOptions { labels: Labels::Folders, ..DataOptions::default() };
    let error = Dataset::open(root.path(), &options).unwrap_err().to_string();
    assert!(error.contains("0.png"), "{error}");
}

#[test]
fn splits_are_folders() {
    let root = tempfile::tempdir().unwrap();
    for name in ["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png", "test/b/5.png"] {
        write_png(&root.path().join(name), 4, 4, 3, 0);
    }
    let open = |split| Dataset::open(root.path(), &DataOptions { split, ..DataOptions::default() }).unwrap();
    assert_eq!(open(Split::Train).len(), 2);
    assert_eq!(names(&open(Split::Test)), ["test/a/3.png", "test/b/4.png", "test/b/5.png"]);
    assert_eq!(open(Split::All).len(), 5);
    assert_eq!(open(Split::All).class_names(), ["a", "b"]);
    assert!(Dataset::has_split(root.path(), &DataOptions::default()));
    let train = root.path().join("train");
    assert!(!Dataset::has_split(&train, &DataOptions::default()));
    let options = DataOptions { split: Split::Test, ..DataOptions::default() };
    assert!(Dataset::open(&train, &options).unwrap_err().to_string().contains("held-out"));
}

#[test]
fn an_empty_folder_says_what_was_looked_for() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("sub")).unwrap();
    for i in 0..3 {
        std::fs::write(root.path().join(format!("sub/{i}.webp")), b"RIFF").unwrap();
    }
    let error = open(root.path()).unwrap_err().to_string();
    for word in ["2 folder(s)", "3 with .webp", ".png", "data_batch_1.bin", "idx3"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(matches!(open(&root.path().join("absent")), Err(Error::Io { .. })));
}

#[cfg(unix)]
#[test]
fn link_loops_and_dangling_links_are_harmless() {
    let root = tempfile::tempdir().unwrap();
    write_png(&root.path().join("a/1.png"), 4, 4, 3, 0);
    std::os::unix::fs::symlink(root.path(), root.path().join("a/loop")).unwrap();
    std::os::unix::fs::symlink(root.path().join("nowhere"), root.path().join("a/gone.png")).unwrap();
    assert_eq!(names(&open(root.path()).unwrap()), ["a/1.png"]);
}

#[test]
fn channels_follow_the_files_or_the_option() {
    let root = tempfile::tempdir().unwrap();
    write_png(&root.path().join("1.png"), 4, 4, 1, 0);
    write_png(&root.path().join("2.png"), 4, 4, 1, 1);
    assert_eq!(open(root.path()).unwrap().channels(), 1);
    let with = |channels| Dataset::open(root.path(), &DataOptions { channels, ..DataOptions::default() }).unwrap();
    let repeated = with(Channels::Rgb).load(0).unwrap();
    assert_eq!(repeated.data()[..6], [[pixels(1, 0)[0]; 3], [pixels(2, 0)[1]; 3]].concat());
    write_png(&root.path().join("3.png"), 4, 4, 3, 0);
    let mixed = open(root.path()).unwrap();
    assert_eq!(mixed.channels(), 3);
    assert_eq!(mixed.load(0).unwrap().channels(), 3);
    assert_eq!(with(Channels::Grey).load(2).unwrap().channels(), 1);
}

#[test]
fn large_images_are_shrunk_when_asked() {
    let root = tempfile::tempdir().unwrap();
    write_png(&root.path().join("1.png"), 40, 20, 3, 0);
    write_png(&root.path().join("2.png"), 9, 7, 3, 0);
    let options = DataOptions { shrink_to: Some(10), ..DataOptions::default() };
    let dataset = Dataset::open(root.path(), &options).unwrap();
    let size = |i| dataset.load(i).map(|image| (image.width(), image.height())).unwrap();
    assert_eq!((size(0), size(1)), ((20, 10), (9, 7)));
}

#[test]
fn cifar_records_become_interleaved_images_with_labels() {
    let root = tempfile::tempdir().unwrap();
    let record = |label: u8, seed| [vec![label], pixels(3072, seed)].concat();
    std::fs::write(root.path().join("data_batch_1.bin"), [record(3, 1), record(9, 2)].concat()).unwrap();
    std::fs::write(root.path().join("data_batch_2.bin"), record(0, 3)).unwrap();
    std::fs::write(root.path().join("test_batch.bin"), record(5, 4)).unwrap();
    let dataset = open(root.path()).unwrap();
    assert_eq!((dataset.kind(), dataset.len(), dataset.channels()), (DatasetKind::Cifar10, 3, 3));
    assert_eq!((0..3).map(|i| dataset.label(i).unwrap()).collect::<Vec<_>>(), [3, 9, 0]);
    assert_eq!(dataset.name(2), "data_batch_2.bin#0");
    let (image, planes) = (dataset.load(1).unwrap(), pixels(3072, 2));
    assert_eq!(image.data()[..6], [planes[0], planes[1024], planes[2048], planes[1], planes[1025], planes[2049]]);
    let test = Dataset::open(root.path(), &DataOptions { split: Split::Test, ..DataOptions::default() }).unwrap();
    assert_eq!((test.len(), test.label(0)), (1, Some(5)));
    assert!(Dataset::has_split(root.path(), &DataOptions::default()));

    std::fs::write(root.path().join("data_batch_2.bin"), &record(0, 3)[1..]).unwrap();
    assert!(open(root.path()).unwrap_err().to_string().contains("3073-byte"));
    std::fs::write(root.path().join("data_batch_2.bin"), record(77, 3)).unwrap();
    assert!(open(root.path()).unwrap_err().to_string().contains("class 77"));
}

#[test]
fn cifar_100_takes_the_fine_label() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("train.bin"), [vec![4, 99], pixels(3072, 1)].concat()).unwrap();
    let dataset = open(root.path()).unwrap();
    assert_eq!((dataset.kind(), dataset.label(0)), (DatasetKind::Cifar100, Some(99)));
    assert_eq!(dataset.load(0).unwrap().data()[0], pixels(1, 1)[0]);
}

#[test]
fn idx_files_are_read_plain_and_gzipped() {
    let root = tempfile::tempdir().unwrap();
    let images = idx(&[2, 5, 4], &pixels(40, 7));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&images).unwrap();
    std::fs::write(root.path().join("train-images-idx3-ubyte.gz"), gz.finish().unwrap()).unwrap();
    std::fs::write(root.path().join("train-labels-idx1-ubyte"), idx(&[2], &[6, 1])).unwrap();
    std::fs::write(root.path().join("t10k-images-idx3-ubyte"), &images).unwrap();
    let dataset = open(root.path()).unwrap();
    assert_eq!((dataset.kind(), dataset.len(), dataset.channels()), (DatasetKind::Idx, 2, 1));
    let image = dataset.load(1).unwrap();
    assert_eq!((image.height(), image.width(), image.data()), (5, 4, &pixels(40, 7)[20..]));
    assert_eq!((dataset.label(0), dataset.label(1), dataset.class_names().len()), (Some(6), Some(1), 7));
    let one_file = open(&root.path().join("t10k-images-idx3-ubyte")).unwrap();
    assert_eq!((one_file.len(), one_file.label(0)), (2, None));
}

#[test]
fn idx_headers_that_lie_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train-images-idx3-ubyte");
    let lies: [(Vec<u8>, &str); 6] = [
        (idx(&[3, 5, 4], &pixels(40, 7)), "need 76 bytes"),
        (idx(&[u32::MAX, u32::MAX, u32::MAX], &[]), "too many"),
        (idx(&[2, 20], &pixels(40, 7)), "images × height × width"),
        (idx(&[0, 5, 4], &[]), "no pixels"),
        (vec![0, 0, 13, 3, 0, 0], "type 0x0d"),
        (vec![1, 0, 8, 3], "zero bytes"),
    ];
    for (bytes, word) in lies {
        std::fs::write(&path, bytes).unwrap();
        let error = open(root.path()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("train-images"), "{word}: {error}");
    }
    std::fs::write(&path, idx(&[2, 5, 4], &pixels(40, 7))).unwrap();
    std::fs::write(root.path().join("train-labels-idx1-ubyte"), idx(&[3], &[6, 1, 1])).unwrap();
    assert!(open(root.path()).unwrap_err().to_string().contains("labels"));
}

/// A volume of 16-bit voxels, `z` slices of `y` × `x`, voxel i being i.
fn volume([x, y, z]: [i16; 3]) -> Vec<u8> {
    let mut bytes = vec![0u8; 352];
    bytes[..4].copy_from_slice(&348i32.to_le_bytes());
    for (i, dim) in [3, x, y, z].into_iter().enumerate() {
        bytes[40 + 2 * i..42 + 2 * i].copy_from_slice(&dim.to_le_bytes());
    }
    bytes[70..72].copy_from_slice(&4i16.to_le_bytes());
    bytes[108..112].copy_from_slice(&352f32.to_le_bytes());
    bytes[344..348].copy_from_slice(b"n+1\0");
    bytes.extend((0..x * y * z).flat_map(i16::to_le_bytes));
    bytes
}

#[test]
fn slices_of_volumes_are_images_of_their_own() {
    let root = tempfile::tempdir().unwrap();
    for (class, name) in [("a", "a/one.nii"), ("b", "b/two.nii")] {
        std::fs::create_dir_all(root.path().join(class)).unwrap();
        std::fs::write(root.path().join(name), volume([4, 3, 2])).unwrap();
    }
    write_png(&root.path().join("b/flat.png"), 4, 3, 1, 1);
    let values = Some(ValueRange::Window([0.0, 255.0]));
    let dataset = Dataset::open(root.path(), &DataOptions { values, ..DataOptions::default() }).unwrap();
    assert_eq!(names(&dataset), ["a/one.nii#0", "a/one.nii#1", "b/flat.png", "b/two.nii#0", "b/two.nii#1"]);
    assert_eq!((0..5).map(|i| dataset.label(i)).collect::<Vec<_>>(), [0, 0, 1, 1, 1].map(Some));
    assert_eq!((dataset.channels(), dataset.bit_depth()), (1, 16));
    let slice = dataset.load(4).unwrap();
    assert_eq!((slice.width(), slice.height(), slice.data()), (4, 3, &(12..24).collect::<Vec<u8>>()[..]));
    // A picture among volumes is no volume: its values are no units.
    let error = dataset.load(2).unwrap_err().to_string();
    assert!(error.contains("flat.png") && error.contains("8 bits"), "{error}");
    let along_x = DataOptions { values, axis: Axis::X, ..DataOptions::default() };
    let dataset = Dataset::open(root.path(), &along_x).unwrap();
    assert_eq!(dataset.len(), 4 + 1 + 4);
    assert_eq!(dataset.load(1).unwrap().data(), [1, 5, 9, 13, 17, 21]);
}

#[test]
fn deep_images_are_refused_until_their_range_is_stated() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("ct.nii"), volume([4, 3, 1])).unwrap();
    let dataset = open(root.path()).unwrap();
    assert_eq!(names(&dataset), ["ct.nii"]);
    assert_eq!(dataset.kinds()[0].0, FileKind { format: "NIfTI".into(), bit_depth: 16, channels: 1 });
    let error = dataset.load(0).unwrap_err().to_string();
    assert!(error.contains("ct.nii") && error.contains("16 bits") && error.contains("--values"), "{error}");
    // Evaluation reads the depth it has.
    let mut raster = moco_image::Raster::default();
    dataset.load_raster_into(0, &mut ReadBuffers::default(), &mut raster).unwrap();
    assert_eq!(raster.bits, 16);
}

#[test]
fn dicom_files_need_no_extension() {
    let root = tempfile::tempdir().unwrap();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../moco-image/fixtures/corpus/dicom/pydicom");
    std::fs::copy(corpus.join("MR_small_RLE.dcm"), root.path().join("IM0001")).unwrap();
    std::fs::copy(corpus.join("SC_rgb_rle_2frame.dcm"), root.path().join("screen.dcm")).unwrap();
    std::fs::write(root.path().join("README"), "no image").unwrap();
    let options = DataOptions { values: Some(ValueRange::File), channels: Channels::Grey, ..DataOptions::default() };
    let dataset = Dataset::open(root.path(), &options).unwrap();
    assert_eq!(names(&dataset), ["IM0001", "screen.dcm#0", "screen.dcm#1"]);
    let kinds: Vec<_> = dataset.kinds().iter().map(|(k, n)| (k.format.as_str(), k.bit_depth, k.channels, *n)).collect();
    assert_eq!(kinds, [("DICOM MR", 16, 1, 1), ("DICOM OT", 8, 3, 2)]);
    assert_eq!(dataset.load(0).unwrap().width(), 64);
}
