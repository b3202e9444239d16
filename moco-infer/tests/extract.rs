//! Extraction end to end: files with random weights through ONNX Runtime (which set-up provides).

use std::path::{Path, PathBuf};

use moco_image::{Image, PreprocessRule, ResizeRule, ValueRange};
use moco_infer::{AsyncExtractor, Backbone, Extractor, ExtractorOptions};
use moco_models::arch::{ArchSpec, Stem};
use moco_models::{card::Card, init::initialise, weights::save_backbone};

fn backbone(folder: &Path, change: impl FnOnce(&mut PreprocessRule)) -> Backbone {
    let arch = ArchSpec { width: 0.25, stem: Stem::Cifar, ..ArchSpec::new("resnet18") };
    let graph = arch.build().unwrap();
    let mut card = Card::new(arch, "random").unwrap();
    change(&mut card.preprocess);
    let path = folder.join("backbone.safetensors");
    save_backbone(&path, &graph, &initialise(&graph, 7), &card).unwrap();
    Backbone::open(folder).unwrap()
}

fn image(width: usize, height: usize, seed: usize) -> Image {
    let value = |i: usize| (((i + 1) * (seed * 2 + 3) * 2_654_435_761) >> 9) as u8;
    Image::new(width, height, 3, (0..width * height * 3).map(value).collect()).unwrap()
}

fn options(taps: &[&str], batch: usize, threads: usize) -> ExtractorOptions {
    let taps = taps.iter().map(|t| t.to_string()).collect();
    ExtractorOptions { taps, batch, threads, ..ExtractorOptions::default() }
}

fn write_png(path: &Path, image: &Image) {
    let mut encoder =
        png::Encoder::new(std::fs::File::create(path).unwrap(), image.width() as u32, image.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(image.data()).unwrap();
}

#[test]
fn features_do_not_depend_on_batch_or_threads() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), |_| ());
    let images: Vec<Image> = (0..7).map(|i| image(40 + i, 33, i)).collect();
    let expected = Extractor::new(&backbone, &options(&["pooled", "c3"], 1, 1)).unwrap().extract(&images).unwrap();
    assert_eq!(expected[0].shape, [7, 128]);
    assert_eq!(expected[1].shape, [7, 32, 16, 16]);
    assert!(expected[0].data.iter().any(|v| *v > 0.0));
    for (batch, threads) in [(2, 1), (7, 1), (3, 2), (100, 4)] {
        let extractor = Extractor::new(&backbone, &options(&["pooled", "c3"], batch, threads)).unwrap();
        assert_eq!(extractor.extract(&images).unwrap(), expected, "batch {batch}, {threads} threads");
    }
}

#[test]
fn files_images_and_bytes_give_the_same_features_and_bad_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), |_| ());
    let images: Vec<Image> = (0..3).map(|i| image(50, 36 + i, i)).collect();
    let mut paths: Vec<PathBuf> = (0..3).map(|i| folder.path().join(format!("{i}.png"))).collect();
    for (path, image) in paths.iter().zip(&images) {
        write_png(path, image);
    }
    let broken = folder.path().join("broken.png");
    std::fs::write(&broken, &std::fs::read(&paths[0]).unwrap()[..60]).unwrap();
    paths.insert(1, broken);
    paths.push(folder.path().join("absent.png"));

    let extractor = Extractor::new(&backbone, &options(&[], 2, 2)).unwrap();
    let expected = extractor.extract(&images).unwrap();
    let mut done = Vec::new();
    let files = extractor.extract_files(&paths, &mut |n| done.push(n)).unwrap();
    assert_eq!(files.features, expected);
    assert_eq!(files.rows, [0, 2, 3]);
    assert_eq!(done, [1, 2, 3, 4, 5]);
    let spent = extractor.time_spent();
    assert!([spent.decode, spent.preprocess, spent.inference].iter().all(|part| !part.is_zero()), "{spent:?}");
    let failed: Vec<_> = files.failed.iter().map(|(i, e)| (*i, e.to_string())).collect();
    assert_eq!(failed.len(), 2);
    assert!(failed[0].0 == 1 && failed[0].1.contains("broken.png"), "{failed:?}");
    assert!(failed[1].0 == 4 && failed[1].1.contains("absent.png"), "{failed:?}");

    let encoded: Vec<Vec<u8>> = [0, 2, 3].map(|i: usize| std::fs::read(&paths[i]).unwrap()).into();
    let encoded: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
    assert_eq!(extractor.extract_encoded(&encoded).unwrap(), expected);
}

#[test]
fn any_size_gives_vectors_while_maps_must_agree() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), |rule| (rule.resize, rule.crop) = (ResizeRule::None, None));
    let images = [image(32, 32, 0), image(48, 40, 1), image(48, 40, 2)];
    let pooled = Extractor::new(&backbone, &options(&["pooled"], 4, 2)).unwrap();
    assert_eq!(pooled.extract(&images).unwrap()[0].shape, [3, 128]);
    let maps = Extractor::new(&backbone, &options(&["c5"], 4, 2)).unwrap();
    assert!(maps.extract(&images).unwrap_err().to_string().contains("c5"));
    let map = maps.extract(&images[1..]).unwrap().remove(0);
    assert_eq!(map.array().unwrap().dim(), ndarray::IxDyn(&[2, 128, 5, 6]));
    assert_eq!(map.array().unwrap()[[1, 3, 2, 4]], map.data[((128 + 3) * 5 + 2) * 6 + 4]);
    assert_eq!(pooled.extract::<Image>(&[]).unwrap()[0].shape, [0, 128]);
}

#[test]
fn wrong_taps_and_channels_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), |_| ());
    let refused = |taps: &[&str]| Extractor::new(&backbone, &options(taps, 0, 1)).err().unwrap().to_string();
    assert!(refused(&["c9"]).contains("c1, c2"));
    assert!(refused(&["c2", "c2"]).contains("twice"));
    let extractor = Extractor::new(&backbone, &options(&[], 0, 1)).unwrap();
    let odd = Image::new(32, 32, 2, vec![0; 32 * 32 * 2]).unwrap();
    assert!(extractor.extract(&[odd]).unwrap_err().to_string().contains("2 channel"));
}

#[test]
fn many_threads_and_tasks_share_one_extractor() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), |_| ());
    let extractor = Extractor::new(&backbone, &options(&[], 1, 2)).unwrap();
    let images: Vec<Image> = (0..8).map(|i| image(32, 32, i)).collect();
    let expected = extractor.extract(&images).unwrap().remove(0);
    std::thread::scope(|scope| {
        for (i, image) in images.iter().enumerate() {
            let (extractor, row) = (&extractor, &expected.data[i * 128..(i + 1) * 128]);
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(extractor.extract(std::slice::from_ref(image)).unwrap()[0].data, row);
                }
            });
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(async {
        let shared = AsyncExtractor::new(extractor);
        let tasks: Vec<_> = images
            .into_iter()
            .map(|image| {
                let shared = shared.clone();
                tokio::spawn(async move { shared.extract(image).await.unwrap().remove(0) })
            })
            .collect();
        for (i, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap().data, expected.data[i * 128..(i + 1) * 128]);
        }
    });
}

fn write_grey_16(path: &Path, image: &Image) {
    let mut encoder =
        png::Encoder::new(std::fs::File::create(path).unwrap(), image.width() as u32, image.height() as u32);
    encoder.set_depth(png::BitDepth::Sixteen);
    let bytes: Vec<u8> = image.data().iter().flat_map(|v| (u16::from(*v) * 257).to_be_bytes()).collect();
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
}

#[test]
fn deep_images_need_a_range_and_then_agree_with_their_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), |_| ());
    let grey = image(50, 40, 3).to_grey().unwrap();
    let path = folder.path().join("deep.png");
    write_grey_16(&path, &grey);
    let strict = Extractor::new(&backbone, &options(&[], 1, 1)).unwrap();
    let refused =
        strict.extract_files(std::slice::from_ref(&path), &mut |_| ()).unwrap().failed.remove(0).1.to_string();
    assert!(refused.contains("deep.png") && refused.contains("16 bits") && refused.contains("--values"), "{refused}");
    let backbone = backbone.with_other_depths(ValueRange::Full).unwrap();
    let extractor = Extractor::new(&backbone, &options(&[], 1, 1)).unwrap();
    let deep = extractor.extract_files(&[path], &mut |_| ()).unwrap().features.remove(0);
    let shallow = extractor.extract(&[grey]).unwrap().remove(0);
    let most = shallow.data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(deep.data.iter().zip(&shallow.data).all(|(a, b)| (a - b).abs() < 0.02 * most));
}

#[test]
fn each_slice_of_a_volume_is_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(folder.path(), |_| ()).with_other_depths(ValueRange::MinMax).unwrap();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../moco-image/fixtures/corpus/nifti/nibabel");
    let files = moco_infer::image_files(&corpus).unwrap();
    let frames = moco_infer::frames_of(&files, &Default::default());
    assert_eq!(frames.len(), 24 + 60);
    assert_eq!(frames[24].name(&corpus), "functional.nii#0");
    let extractor = Extractor::new(&backbone, &options(&[], 2, 2)).unwrap();
    let rows = extractor.extract_files(&frames[22..27], &mut |_| ()).unwrap();
    assert_eq!((rows.rows.len(), rows.failed.len()), (5, 0));
    let whole = extractor.extract_files(&files[1..], &mut |_| ()).unwrap().failed.remove(0).1.to_string();
    assert!(whole.contains("functional.nii") && whole.contains("60 images"), "{whole}");
}
