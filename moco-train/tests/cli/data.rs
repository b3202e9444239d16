//! Kinds of data and what does not fit.

use std::path::Path;

use moco_models::weights::BackboneFile;

use super::support::{fail, photographs, pretrain, steps, succeed};

/// `train-images-idx3-ubyte` with 60 grey images of 28 × 28.
fn write_idx(folder: &Path) {
    let header = [0x803u32, 60, 28, 28].map(u32::to_be_bytes).concat();
    let pixels = (0..60u32 * 28 * 28).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8);
    std::fs::write(folder.join("train-images-idx3-ubyte"), header.into_iter().chain(pixels).collect::<Vec<_>>())
        .unwrap();
}

#[test]
fn grey_images_make_a_grey_network_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    write_idx(folder.path());
    let path = folder.path().join("run");
    let text = succeed(&mut pretrain(folder.path(), &path, &["--epochs", "1", "--size", "28", "--stem", "cifar"]));
    assert!(text.contains("1 channel") && text.contains("saturation"), "{text}");
    let file = BackboneFile::open(&path.join("backbone.safetensors")).unwrap();
    assert_eq!((file.card().arch.in_channels, file.card().preprocess.mean.len()), (1, 1));
    let config = std::fs::read_to_string(path.join("config.toml")).unwrap();
    assert!(config.contains("channels = \"grey\""), "{config}");
}

#[test]
fn statistics_of_the_wrong_number_of_channels_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--set", "augment.mean=[0.5]", "--set", "augment.std=[0.2]"];
    let path = folder.path().join("run");
    fail(&mut pretrain(&photographs(), &path, &more), &["augment.mean", "3"]);
    assert!(!path.exists(), "a run that cannot start left a folder");
}

#[test]
fn corrupt_images_are_named_and_replaced_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let class = std::fs::read_dir(photographs()).unwrap().next().unwrap().unwrap().path();
    for (i, entry) in std::fs::read_dir(class).unwrap().enumerate() {
        std::fs::copy(entry.unwrap().path(), data.join(format!("{i}.jpg"))).unwrap();
    }
    std::fs::write(data.join("broken.jpg"), b"\xff\xd8\xff not a photograph").unwrap();
    let text = succeed(&mut pretrain(&data, &folder.path().join("a"), &["--epochs", "3"]));
    assert!(text.contains("broken.jpg"), "{text}");
    fail(&mut pretrain(&data, &folder.path().join("b"), &["--epochs", "3", "--max-corrupt", "0"]), &["broken.jpg"]);
}

#[test]
fn a_set_smaller_than_a_batch_and_an_empty_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    fail(&mut pretrain(&photographs(), &path, &["--batch", "300"]), &["288 images", "--batch"]);
    fail(&mut pretrain(folder.path(), &path, &[]), &["--data"]);
    assert!(!path.exists());
}

#[test]
fn symmetric_training_with_partial_batches_and_any_queue_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let more = ["--recipe", "cifar-demo", "--symmetric", "--drop-last", "false", "--epochs", "2", "--bn-splits", "4"];
    let mut command = super::support::moco_train();
    command
        .args(["pretrain", "--arch", "resnet18", "--width", "0.125", "--batch", "50", "--queue", "77", "--lr", "0.01"]);
    command.arg("--data").arg(photographs()).arg("--out").arg(&path).args(more);
    let text = succeed(&mut command);
    assert!(text.contains("6 steps"), "{text}");
    let sizes: Vec<usize> = steps(&path).iter().map(|s| s.images).collect();
    assert_eq!(sizes, [50, 50, 50, 50, 50, 38].repeat(2));
}

#[test]
fn a_queue_larger_than_the_set_is_warned_about_unless_masked() {
    let folder = tempfile::tempdir().unwrap();
    let warned = succeed(&mut pretrain(&photographs(), &folder.path().join("a"), &["--epochs", "1", "--queue", "500"]));
    assert!(warned.contains("larger than the 288 images"), "{warned}");
    let more = ["--epochs", "1", "--queue", "500", "--mask-same-image"];
    let masked = succeed(&mut pretrain(&photographs(), &folder.path().join("b"), &more));
    assert!(!masked.contains("larger than the 288 images"), "{masked}");
}
