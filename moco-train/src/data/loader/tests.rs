//! The loader's promises: same batches whatever the threads, resuming, unreadable files, no growth.

use std::path::Path;

use super::*;
use crate::data::testing::{pixels, write_png};
use crate::data::{DataOptions, summarise};

fn folder(images: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for i in 0..images {
        write_png(&root.path().join(format!("{i:03}.png")), 20 + i % 7, 24, 3, i as u64);
    }
    root
}

fn options() -> LoaderOptions {
    let view = AugmentConfig { size: [16, 12], ..AugmentConfig::moco_v2() };
    LoaderOptions {
        batch: 8,
        share: Share::WHOLE,
        drop_last: false,
        seed: 11,
        views: [view.clone(), view],
        threads: 2,
        prefetch: 2,
        cache_bytes: 0,
        max_corrupt: 0,
    }
}

fn start(path: &Path, options: LoaderOptions, epoch: u64, step: usize) -> Result<Loader> {
    let dataset = Dataset::open(path, &DataOptions::default())?;
    Loader::start(Arc::new(dataset), options, epoch, step)
}

type Content = (u64, usize, Vec<usize>, [Vec<f32>; 2]);

fn take(loader: &mut Loader, batches: usize) -> Vec<Content> {
    let mut next = || {
        let batch = loader.next_batch().unwrap();
        (batch.epoch, batch.step, batch.indices.clone(), batch.views.clone())
    };
    (0..batches).map(|_| next()).collect()
}

#[test]
fn batches_are_the_same_whatever_threads_prefetch_and_cache() {
    let root = folder(21);
    let expected =
        take(&mut start(root.path(), LoaderOptions { threads: 1, prefetch: 1, ..options() }, 0, 0).unwrap(), 8);
    assert_eq!(expected.iter().map(|b| b.2.len()).collect::<Vec<_>>(), [8, 8, 5, 8, 8, 5, 8, 8]);
    for (threads, prefetch, cache_bytes) in [(2, 1, 0), (5, 4, 1 << 20), (3, 2, 5000)] {
        let options = LoaderOptions { threads, prefetch, cache_bytes, ..options() };
        assert_eq!(take(&mut start(root.path(), options, 0, 0).unwrap(), 8), expected, "{threads} threads");
    }
    let other = take(&mut start(root.path(), LoaderOptions { seed: 12, ..options() }, 0, 0).unwrap(), 1);
    assert_ne!(other[0].3, expected[0].3);
}

#[test]
fn starting_at_a_batch_continues_exactly() {
    let root = folder(21);
    let whole = take(&mut start(root.path(), options(), 0, 0).unwrap(), 7);
    assert_eq!(take(&mut start(root.path(), options(), 1, 2).unwrap(), 2), whole[5..]);
    assert!(start(root.path(), options(), 0, 3).is_err());
}

#[test]
fn partial_batches_are_kept_or_dropped() {
    let root = folder(21);
    let dropping = LoaderOptions { drop_last: true, ..options() };
    let mut loader = start(root.path(), dropping.clone(), 0, 0).unwrap();
    assert_eq!(loader.batches_per_epoch(), 2);
    assert!(take(&mut loader, 5).iter().all(|b| b.2.len() == 8));
    let error = start(root.path(), LoaderOptions { batch: 22, ..dropping }, 0, 0).unwrap_err().to_string();
    assert!(error.contains("21 images") && error.contains("22"), "{error}");
}

#[test]
fn unreadable_images_are_replaced_and_reported_up_to_the_limit() {
    let root = folder(21);
    std::fs::write(root.path().join("005.png"), b"\x89PNG\r\n\x1a\nnonsense").unwrap();
    std::fs::write(root.path().join("006.png"), b"").unwrap();
    let tolerant = LoaderOptions { max_corrupt: 2, ..options() };
    let mut loader = start(root.path(), tolerant.clone(), 0, 0).unwrap();
    let batches = take(&mut loader, 6);
    assert!(batches.iter().all(|b| !b.2.contains(&5) && !b.2.contains(&6)));
    assert_eq!(batches.iter().map(|b| b.2.len()).sum::<usize>(), 42);
    let corrupt = loader.corrupt();
    assert_eq!(corrupt.iter().map(|c| &*c.name).collect::<Vec<_>>(), ["005.png", "006.png"]);
    assert!(corrupt[1].reason.contains("empty"), "{}", corrupt[1].reason);
    assert_eq!(take(&mut start(root.path(), LoaderOptions { threads: 4, ..tolerant }, 0, 0).unwrap(), 6), batches);

    let mut strict = start(root.path(), LoaderOptions { max_corrupt: 1, ..options() }, 0, 0).unwrap();
    let error = (0..6).find_map(|_| strict.next_batch().err()).expect("two broken files, one allowed");
    assert!(matches!(error, Error::TooManyCorrupt { count: 2, allowed: 1, total: 21, .. }), "{error}");
}

#[test]
fn a_set_of_broken_files_only_is_an_error_and_no_hang() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..3 {
        std::fs::write(root.path().join(format!("{i}.jpg")), b"\xFF\xD8\xFF").unwrap();
    }
    let mut loader = start(root.path(), LoaderOptions { batch: 2, max_corrupt: 100, ..options() }, 0, 0).unwrap();
    assert!((0..2).any(|_| loader.next_batch().is_err()));
}

#[test]
fn buffers_are_reused_and_kept_batches_do_not_block() {
    let root = folder(21);
    let mut loader = start(root.path(), LoaderOptions { drop_last: true, ..options() }, 0, 0).unwrap();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..40 {
        places.insert(loader.next_batch().unwrap().views[0].as_ptr() as usize);
    }
    assert!(places.len() <= 3, "{} buffers for 2 batches ahead and one in use", places.len());
    let kept: Vec<Batch> = (0..7).map(|_| loader.next_batch().unwrap()).collect();
    assert_eq!(kept.iter().map(|b| b.n).sum::<usize>(), 56);
    drop(loader);
    assert_eq!(kept[6].views[1].len(), 8 * 16 * 12 * 3);
}

#[test]
fn views_are_finite_differ_and_are_normalised() {
    let root = folder(9);
    let batch = start(root.path(), options(), 0, 0).unwrap().next_batch().unwrap();
    assert_ne!(batch.views[0], batch.views[1]);
    let values = batch.views.iter().flatten();
    // (0 − 0.485)/0.229 and (1 − 0.406)/0.225 bound what normalised pixels can be.
    assert!(values.clone().all(|v| v.is_finite() && (-2.2..2.7).contains(v)));
}

#[test]
fn grey_sets_need_one_mean() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..8 {
        write_png(&root.path().join(format!("{i}.png")), 28, 28, 1, i);
    }
    let error = start(root.path(), options(), 0, 0).unwrap_err().to_string();
    assert!(error.contains("1 channel"), "{error}");
    let view = AugmentConfig { size: [28, 28], mean: vec![0.5], std: vec![0.25], ..AugmentConfig::moco_v2() };
    let grey = LoaderOptions { views: [view.clone(), view], ..options() };
    let batch = start(root.path(), grey, 0, 0).unwrap().next_batch().unwrap();
    assert_eq!(batch.views[1].len(), 8 * 28 * 28);
}

#[test]
fn packed_sets_load_and_the_wait_is_measured() {
    let root = tempfile::tempdir().unwrap();
    let record = |i: u64| [vec![(i % 10) as u8], pixels(3072, i)].concat();
    std::fs::write(root.path().join("data_batch_1.bin"), (0..64).flat_map(record).collect::<Vec<_>>()).unwrap();
    let views = [AugmentConfig::cifar_demo(), AugmentConfig::cifar_demo()];
    let mut loader =
        start(root.path(), LoaderOptions { batch: 16, views, cache_bytes: 1 << 20, ..options() }, 0, 0).unwrap();
    take(&mut loader, 4);
    let stats = loader.stats();
    assert_eq!((stats.batches, stats.images), (4, 64));
    assert!((0.0..=1.0).contains(&stats.wait_share()) && !stats.augmenting.is_zero());
    assert_eq!(loader.memory_bytes(), 3 * 16 * 2 * 3072 * 4);
}

#[test]
fn a_summary_tells_sizes_classes_and_broken_files() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..6u64 {
        write_png(&root.path().join(format!("a/{i}.png")), 30 + i as usize, 20, 3, i);
    }
    write_png(&root.path().join("b/1.png"), 100, 70, 3, 0);
    std::fs::write(root.path().join("b/2.png"), b"text").unwrap();
    let dataset = Dataset::open(root.path(), &DataOptions::default()).unwrap();
    let summary = summarise(&dataset, 100, 10.0).unwrap();
    assert_eq!((summary.images, summary.classes, summary.class_sizes), (8, 2, Some((2, 6))));
    assert_eq!((summary.looked_at, summary.width, summary.height), (8, (30, 100), (20, 70)));
    let sizes: Vec<_> = summary.sizes.iter().map(|b| (b.from, b.to, b.count)).collect();
    assert_eq!(sizes, [(16, 32, 6), (64, 128, 1)]);
    assert_eq!(summary.corrupt.iter().map(|c| &*c.name).collect::<Vec<_>>(), ["b/2.png"]);
    assert!(summary.decode_rate > 0.0 && summary.decoded_bytes > 1800.0);
}

#[test]
fn decoded_batches_hold_the_same_images_in_the_same_order_and_their_memory_stays() {
    let root = folder(21);
    let dataset = || Arc::new(Dataset::open(root.path(), &DataOptions::default()).unwrap());
    let views = take(&mut start(root.path(), options(), 0, 0).unwrap(), 6);
    let memory = Arc::new(moco_engine::device::Pageable);
    let mut loader = Loader::start_decoded(dataset(), options(), memory, 0, 0).unwrap();
    for (epoch, step, indices, _) in views {
        let batch = loader.next_batch().unwrap();
        assert_eq!((batch.epoch, batch.step, &batch.indices), (epoch, step, &indices));
        assert!(batch.views.iter().all(Vec::is_empty));
        let decoded = batch.decoded.as_ref().unwrap();
        let sent = decoded.as_batch();
        assert_eq!((sent.n, sent.size, sent.channels), (indices.len(), [16, 12], 3));
        assert_eq!(sent.pixels.len(), decoded.pixel_bytes());
        // Never more than the whole images, and the tables of each view after its header.
        assert!(!sent.pixels.is_empty() && sent.pixels.len() <= indices.len() * 26 * 24 * 3);
        assert!(sent.tables.iter().all(|t| t.len() > sent.n * moco_image::VIEW_HEADER));
        assert!(sent.normal.iter().all(|t| t.len() == 3 * 256));
    }
    let uneven = [options().views[0].clone(), AugmentConfig { size: [12, 12], ..AugmentConfig::moco_v2() }];
    let memory = Arc::new(moco_engine::device::Pageable);
    let error =
        Loader::start_decoded(dataset(), LoaderOptions { views: uneven, ..options() }, memory, 0, 0).unwrap_err();
    assert!(error.to_string().contains("one size"), "{error}");
}
