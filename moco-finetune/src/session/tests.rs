//! Small networks that learn a handful of real images, resumed, cancelled, frozen and stopped early.

use std::ops::ControlFlow;
use std::path::PathBuf;

use moco_image::{Limits, PreprocessRule, Raster, decode_file};
use moco_models::arch::{ArchSpec, Stem};
use moco_models::heads::{Classify, Fit, HeadSpec};

use super::*;
use crate::augment::AugmentOptions;
use crate::data::InMemory;
use crate::task::Target;

/// The first `each` images of the first `classes` classes.
fn groceries(classes: usize, each: usize) -> InMemory {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/data/groceries/train");
    let entries = |path: &PathBuf| {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let (mut names, mut samples) = (vec![], vec![]);
    for (label, folder) in entries(&root).iter().take(classes).enumerate() {
        names.push(folder.file_name().unwrap().to_string_lossy().into_owned());
        for file in entries(folder).iter().take(each) {
            let image = Raster::from(decode_file(file, &Limits::default()).unwrap());
            samples.push(Sample { image, target: Target::Class(label), name: file.display().to_string() });
        }
    }
    InMemory::new(names, samples).unwrap()
}

fn start() -> Start {
    let arch = ArchSpec { width: 0.25, stem: Stem::Cifar, ..ArchSpec::new("resnet18") };
    Start::random(arch, Some(PreprocessRule::imagenet(32, 32)), 1).unwrap()
}

fn options(head: &HeadSpec) -> Options {
    let mut options = Options::for_head(head, false);
    (options.size, options.batch, options.epochs) = ([32, 32], 8, 12);
    options.augment = AugmentOptions::none();
    options.optimiser.lr = 3e-3;
    options
}

fn quiet(_: &Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn fit_data(train: &InMemory) -> FitData<'_> {
    FitData { train, validation: None, checkpoint: None, threads: 2 }
}

fn session(data: &InMemory, head: HeadSpec, options: Options) -> Session {
    Session::new(start(), head, data.classes().to_vec(), options).unwrap()
}

#[test]
fn a_classifier_learns_its_images_and_its_model_answers_the_same_from_a_file() {
    let data = groceries(3, 6);
    let head = HeadSpec::Classify(Classify { hidden: vec![32], ..Classify::linear(3) });
    let mut session = session(&data, head.clone(), Options { epochs: 40, ..options(&head) });
    let report = session.fit(&fit_data(&data), &mut quiet).unwrap();
    assert_eq!((report.outcome, report.step, report.epochs.len()), (Outcome::Finished, 120, 40));
    assert!(report.epochs[39].loss < 0.5 * report.epochs[0].loss, "{:?}", report.epochs);
    let evaluation = session.evaluate(&data, &mut quiet).unwrap();
    assert_eq!(evaluation.deciding(), Some(("accuracy", 1.0)), "{evaluation:?}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    session.model().unwrap().save(&path).unwrap();
    let images: Vec<Raster> = (0..data.len()).map(|i| data.image(i).unwrap()).collect();
    let images: Vec<&Raster> = images.iter().collect();
    let model = Model::open(&path).unwrap();
    let mut predictor =
        model.predictor(session.options.device, session.options.precision, PredictOptions::default()).unwrap();
    assert_eq!(predictor.predict(&images).unwrap(), session.predict(&images).unwrap());
}

#[test]
fn a_resumed_training_equals_an_uninterrupted_one_to_the_bit() {
    let data = groceries(3, 5);
    let head = HeadSpec::Classify(Classify { hidden: vec![16], ..Classify::linear(3) });
    for freeze in [Freeze::Nothing, Freeze::Stages(2), Freeze::Backbone] {
        for kind in [OptimiserKind::AdamW, OptimiserKind::Sgd] {
            let mut options = Options { epochs: 4, average: 0.9, freeze, ..options(&head) };
            options.optimiser.kind = kind;
            options.optimiser.clip = 1.0;
            let mut whole = session(&data, head.clone(), options.clone());
            let fit = FitData { validation: Some(&data), ..fit_data(&data) };
            let report = whole.fit(&fit, &mut quiet).unwrap();

            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.safetensors");
            let mut first = session(&data, head.clone(), options);
            let fit = FitData { checkpoint: Some(&path), ..fit };
            let mut stop_in_an_epoch = |event: &Event<'_>| match event {
                Event::Step(step) if step.step == 3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            let cancelled = first.fit(&fit, &mut stop_in_an_epoch).unwrap();
            assert_eq!((cancelled.outcome, cancelled.step), (Outcome::Cancelled, 3));
            let mut second = Session::resume(&path, None).unwrap();
            let resumed = second.fit(&fit, &mut quiet).unwrap();
            assert_eq!(resumed.epochs, report.epochs, "{freeze} {kind:?}");
            assert_eq!(second.stack.net.state().unwrap(), whole.stack.net.state().unwrap(), "{freeze} {kind:?}");
            assert_eq!(second.model().unwrap(), whole.model().unwrap(), "{freeze} {kind:?}");
        }
    }
}

#[test]
fn what_is_frozen_stays_as_it_was_and_what_is_not_moves() {
    let data = groceries(2, 4);
    let head = HeadSpec::classify(2);
    let before = start().weights;
    let graph = start().graph;
    for (freeze, fixed, moving) in [
        (
            Freeze::Stages(2),
            vec!["conv1.weight", "bn1.running_mean", "layer1.1.bn2.weight"],
            vec!["layer2.0.conv1.weight"],
        ),
        (Freeze::Backbone, vec!["conv1.weight", "layer4.1.conv2.weight", "layer4.1.bn2.running_var"], vec![]),
        (Freeze::Nothing, vec![], vec!["conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"]),
    ] {
        let mut session = session(&data, head.clone(), Options { epochs: 2, freeze, ..options(&head) });
        let hash = session.frozen_sha256().unwrap();
        let report = session.fit(&fit_data(&data), &mut quiet).unwrap();
        assert_eq!((report.frozen_sha256.is_some(), &report.frozen_sha256), (freeze != Freeze::Nothing, &hash));
        let model = session.model().unwrap();
        let value =
            |name: &str| (before.param(&graph, name).unwrap(), model.weights().param(model.graph(), name).unwrap());
        for name in fixed {
            let (old, new) = value(name);
            assert_eq!(old, new, "{freeze}: {name}");
        }
        for name in moving {
            let (old, new) = value(name);
            assert_ne!(old, new, "{freeze}: {name}");
        }
    }
}

#[test]
fn features_that_are_kept_teach_the_same_as_features_made_each_time() {
    let data = groceries(2, 4);
    let head = HeadSpec::classify(2);
    let frozen = Options { epochs: 3, freeze: Freeze::Backbone, ..options(&head) };
    let model = |options| {
        let mut session = session(&data, head.clone(), options);
        let mut kept = false;
        session
            .fit(&fit_data(&data), &mut |event| {
                kept |= matches!(event, Event::Features { .. });
                ControlFlow::Continue(())
            })
            .unwrap();
        (kept, session.model().unwrap().weights().clone())
    };
    let (kept, once) = model(frozen.clone());
    let (not_kept, each) = model(Options { cache_mib: 0, ..frozen });
    assert!(kept && !not_kept);
    assert_eq!(once, each);
}

#[test]
fn early_stopping_gives_the_weights_of_the_best_epoch() {
    let data = groceries(2, 6);
    let head = HeadSpec::classify(2);
    let mut options = Options { epochs: 200, patience: 3, ..options(&head) };
    options.optimiser.lr = 1e-2;
    let mut session = session(&data, head.clone(), options);
    let fit = FitData { validation: Some(&data), ..fit_data(&data) };
    let report = session.fit(&fit, &mut quiet).unwrap();
    assert_eq!(report.outcome, Outcome::StoppedEarly);
    let best = report.best().unwrap();
    assert!(best.best && report.epochs.len() as u64 == best.epoch + 3, "{report:?}");
    let now = session.evaluate(&data, &mut quiet).unwrap();
    assert_eq!(Some(&now), best.validation.as_ref());
    // Nothing is left to do.
    assert_eq!(session.fit(&fit, &mut quiet).unwrap().step, report.step);
}

#[test]
fn single_steps_learn_too_and_need_to_know_how_many_there_will_be() {
    let data = groceries(2, 4);
    let head = HeadSpec::classify(2);
    let batch: Vec<Sample> = (0..data.len()).map(|i| data.get(i).unwrap()).collect();
    let mut endless = session(&data, head.clone(), options(&head));
    assert!(endless.step(batch.clone()).unwrap_err().to_string().contains("`steps`"));
    let mut session = session(&data, head.clone(), Options { steps: 20, ..options(&head) });
    assert!(session.step(vec![]).unwrap_err().to_string().contains("1 to 8"));
    let losses: Vec<f64> = (0..20).map(|_| session.step(batch.clone()).unwrap().loss).collect();
    assert!(losses[19] < 0.3 * losses[0], "{losses:?}");
    let wrong = Sample { target: Target::Classes(vec![1]), ..batch[0].clone() };
    assert!(session.step(vec![wrong]).unwrap_err().to_string().contains("a set of classes"));
}

#[test]
fn bad_options_are_named() {
    let head = HeadSpec::classify(3);
    type Change = (&'static str, fn(&mut Options));
    let changes: [Change; 12] = [
        ("size", |o| o.size = [0, 32]),
        ("batch", |o| o.batch = 0),
        ("epochs", |o| o.epochs = 0),
        ("virtual_ranks", |o| o.virtual_ranks = 9),
        ("average", |o| o.average = 1.0),
        ("optimiser.lr", |o| o.optimiser.lr = f64::NAN),
        ("optimiser.layer_decay", |o| o.optimiser.layer_decay = 1.5),
        ("optimiser.momentum", |o| o.optimiser.momentum = 1.0),
        ("schedule.warmup", |o| o.schedule.warmup = 1.0),
        ("class_weights", |o| o.class_weights = ClassWeights::Given(vec![1.0])),
        ("loss.task", |o| o.loss = LossOptions::MultiLabel {}),
        ("fit", |o| o.fit = Fit::Tiles { overlap: 4 }),
    ];
    for (name, change) in changes {
        let mut options = options(&head);
        change(&mut options);
        let error = options.validate(&head).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
    }
}

#[test]
fn options_survive_toml_and_changes_are_checked() {
    let head = HeadSpec::classify(3);
    let plain = options(&head);
    assert_eq!(plain.with_toml("").unwrap(), plain);
    let changed = plain
        .with_toml(
            "epochs = 7\nclass_weights = [1, 2, 0.5]\nfreeze = \"stages:2\"\n[optimiser]\nlr = 0.5\nkind = \"sgd\"",
        )
        .unwrap();
    assert_eq!((changed.epochs, changed.freeze, changed.optimiser.lr), (7, Freeze::Stages(2), 0.5));
    assert_eq!(changed.class_weights, ClassWeights::Given(vec![1.0, 2.0, 0.5]));
    assert_eq!(changed.optimiser.weight_decay, plain.optimiser.weight_decay);
    let words = plain.with_word("augment", "light").unwrap().with_word("optimiser.lr", "0.25").unwrap();
    let words = words.with_word("fit", "cover:40").unwrap().with_word("freeze", "backbone").unwrap();
    assert_eq!((words.augment, words.optimiser.lr), (AugmentOptions::light(), 0.25));
    assert_eq!((words.fit, words.freeze), (Fit::Cover { shorter: 40 }, Freeze::Backbone));
    for (text, word) in [
        ("augment = \"strong\"", "strong"),
        ("fit = \"tile\"", "tiles:PIXELS"),
        ("epoch = 7", "epoch"),
        ("freeze = \"head\"", "stages:1"),
        ("[optimiser]\nrate = 1", "rate"),
        ("= 3", "TOML"),
    ] {
        let error = plain.with_toml(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}
