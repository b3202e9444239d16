//! Fine-tuned models against PyTorch: the maps of every head, and what an exported model answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moco_engine::{Mode, Plan, PlanConfig};
use moco_infer::{Network, NetworkOptions, NetworkOutput, Values};
use moco_models::arch::ArchSpec;
use moco_models::card::Card;
use moco_models::heads::{HeadCard, HeadSpec, PREFIX, Task};
use moco_models::onnx::{CLASS_NAMES_KEY, InputSize, ModelExport, Suppress, export_model};
use moco_models::weights::{CARD_KEY, HEAD_KEY, ModelFile};
use moco_models::{Graph, Shape, Weights};
use moco_tests::generator::{images_nhwc, parameters, uniform};
use moco_tests::reference::Reference;
use moco_tests::tolerance::relative_l2;

/// Relative L2 error of float32 against float64.
const BOUND: f64 = 1e-5;

struct Case {
    name: String,
    file: Reference,
    head: HeadSpec,
    model: ModelFile,
    weights: Weights,
    input: [usize; 4],
}

impl Case {
    fn open(path: &Path) -> Case {
        let file = Reference::open(path).unwrap();
        let get = |key: &str| file.metadata()[key].clone();
        let arch: ArchSpec = serde_json::from_str(&get("arch")).unwrap();
        let task: Task = get("task").parse().unwrap();
        let head = HeadSpec::parse(task, &get("head"), get("classes").parse().unwrap()).unwrap();
        let backbone = arch.build().unwrap();
        let graph = head.attach(&backbone).unwrap();
        let mut weights = parameters(&graph, &get("seed"));
        for name in ["head.cls.logits.weight", "head.box.distances.weight", "head.box.centre.weight"] {
            let place = graph.parameter_layout().range(name).unwrap_or_default();
            weights.params[place].iter_mut().for_each(|v| *v /= 16.0);
        }
        let numbers: Vec<usize> = get("input").split(' ').map(|n| n.parse().unwrap()).collect();
        let input: [usize; 4] = numbers.try_into().unwrap();
        let card = Card::new(arch, "generated").unwrap();
        let names = (0..head.classes()).map(|i| format!("class {i}")).collect();
        let described = HeadCard::new(head.clone(), names, &card, [input[2], input[3]]).unwrap();
        let model = ModelFile::in_memory("case", &graph, &weights, &card, &described).unwrap();
        Case { name: get("seed"), file, head, model, weights, input }
    }

    fn graph(&self) -> &Graph {
        self.model.graph()
    }

    /// What is compared, and never less than the head's results.
    fn expected(&self, name: &str) -> Vec<f64> {
        self.file.f64s(name).unwrap()
    }

    fn nchw(&self) -> Vec<f32> {
        let values = uniform(&format!("{}/images", self.name), self.input.iter().product());
        values.into_iter().map(|v| (2.0 * v) as f32).collect()
    }

    /// The model as a file, opened and run.
    fn run(&self, options: &ModelExport) -> (Network, Vec<NetworkOutput>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        export_model(&path, &self.model, options).unwrap();
        let mut network = Network::open(&path, &one_thread()).unwrap();
        let outputs = network.run(&self.nchw(), self.input).unwrap();
        (network, outputs)
    }
}

fn one_thread() -> NetworkOptions {
    NetworkOptions { threads: 1, ..NetworkOptions::default() }
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/heads");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    assert!(paths.len() >= 10, "{paths:?}");
    paths.iter().map(|path| Case::open(path)).collect()
}

#[test]
fn heads_have_as_many_parameters_as_pytorchs() {
    for case in cases() {
        let parameters = case.graph().parameters().into_iter().filter(|p| p.name.starts_with(PREFIX));
        let expected: usize = case.file.metadata()["parameters"].parse().unwrap();
        assert_eq!(parameters.map(|p| p.numel()).sum::<usize>(), expected, "{}", case.name);
    }
}

#[test]
fn the_engine_computes_the_maps_that_pytorch_computes() {
    for case in cases() {
        let [n, channels, height, width] = case.input;
        let images = images_nhwc(&format!("{}/images", case.name), [n, channels, height, width]);
        let mut plan = Plan::compile(case.graph(), &PlanConfig::new(n, height, width, Mode::Eval)).unwrap();
        let Weights { params, mut buffers, .. } = case.weights.clone();
        plan.forward(&params, &mut buffers, &images, n).unwrap();
        for output in case.head.outputs(case.graph()).unwrap() {
            let got = nchw(plan.output(&output.tap).unwrap(), plan.output_shape(&output.tap).unwrap());
            let error = relative_l2(&got, &case.expected(&output.tap));
            assert!(error < BOUND, "{} of {}: {error:.1e}", output.tap, case.name);
        }
    }
}

#[test]
fn exported_models_answer_as_pytorch_does_whether_sizes_are_open_or_fixed() {
    for case in cases() {
        let [n, _, height, width] = case.input;
        let fixed = InputSize { batch: Some(n), image: Some([height, width]) };
        let sizes =
            [InputSize::default(), InputSize { batch: None, ..fixed }, InputSize { image: None, ..fixed }, fixed];
        for size in sizes {
            let logits = case.head.task() != Task::Detect;
            let (network, outputs) = case.run(&ModelExport { size, logits, suppress: None });
            let known: &[&str] = match case.head.task() {
                Task::Classify | Task::MultiLabel => &["probabilities", "logits"],
                Task::Segment => &["probabilities", "mask", "logits"],
                Task::Detect => &["boxes", "scores"],
            };
            assert_eq!(network.outputs(), known);
            for NetworkOutput { name, shape, values } in outputs {
                let what = format!("{name} of {} for {size:?}", case.name);
                assert_eq!(shape, case.file.shape(&name).unwrap(), "{what}");
                let expected = case.expected(&name);
                match values {
                    Values::F32(got) => {
                        let error = relative_l2(&got, &expected);
                        assert!(error < BOUND, "{what}: {error:.1e}");
                    }
                    Values::U8(got) => {
                        let same = got.iter().zip(&expected).filter(|(a, b)| f64::from(**a) == **b).count();
                        // Where two classes are as likely as can be, rounding decides.
                        assert!(same * 1000 >= got.len() * 999, "{what}: {same} of {}", got.len());
                    }
                    Values::I64(_) => panic!("{what} holds integers"),
                }
            }
        }
    }
}

#[test]
fn a_model_file_runs_over_its_own_bytes_and_says_what_it_is() {
    for case in cases() {
        let mut in_memory = Network::of_model(&case.model, &ModelExport::default(), &one_thread()).unwrap();
        let (file, expected) = case.run(&ModelExport::default());
        assert_eq!(in_memory.run(&case.nchw(), case.input).unwrap(), expected);
        for network in [&in_memory, &file] {
            let get = |key: &str| network.metadata(key).unwrap().unwrap();
            assert_eq!(Card::from_json(&get(CARD_KEY)).unwrap(), *case.model.card());
            assert_eq!(HeadCard::from_json(&get(HEAD_KEY)).unwrap(), *case.model.head());
            let names: Vec<String> = serde_json::from_str(&get(CLASS_NAMES_KEY)).unwrap();
            assert_eq!(names, case.model.head().class_names);
        }
        let wrong = [case.input[0], case.input[1] + 1, case.input[2], case.input[3]];
        assert!(file.metadata("nothing").unwrap().is_none());
        assert!(in_memory.run(&case.nchw(), wrong).unwrap_err().to_string().contains("values were given"));
    }
}

#[test]
fn suppression_keeps_the_best_of_what_overlaps() {
    for case in cases().into_iter().filter(|c| c.head.task() == Task::Detect) {
        let suppress = Suppress { iou: 0.5, score: 0.4, per_class: 7 };
        let (_, all) = case.run(&ModelExport::default());
        let (_, kept) = case.run(&ModelExport { suppress: Some(suppress), ..ModelExport::default() });
        let kept: BTreeMap<String, NetworkOutput> = kept.into_iter().map(|o| (o.name.clone(), o)).collect();
        let f32s = |o: &NetworkOutput| o.values.as_f32().unwrap().to_vec();
        let i64s = |name: &str| match &kept[name].values {
            Values::I64(values) => values.clone(),
            other => panic!("{name}: {other:?}"),
        };
        let (boxes, scores, classes) = (f32s(&all[0]), f32s(&all[1]), case.head.classes());
        let mut expected = Vec::new();
        for image in 0..case.input[0] {
            let places = all[0].shape[1];
            for class in 0..classes {
                let score = |place: usize| scores[(image * places + place) * classes + class];
                let corner =
                    |place: usize| -> [f32; 4] { boxes[(image * places + place) * 4..][..4].try_into().unwrap() };
                let mut order: Vec<usize> = (0..places).filter(|p| score(*p) > suppress.score).collect();
                order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
                let mut taken: Vec<usize> = Vec::new();
                for place in order {
                    if taken.len() < suppress.per_class
                        && taken.iter().all(|t| iou(corner(*t), corner(place)) <= suppress.iou)
                    {
                        taken.push(place);
                        expected.push((image as i64, class as i64, score(place), corner(place)));
                    }
                }
            }
        }
        assert!(expected.len() > 4, "{}: {} boxes say little", case.name, expected.len());
        let found: Vec<(i64, i64, f32, [f32; 4])> = i64s("image_index")
            .into_iter()
            .zip(i64s("labels"))
            .zip(f32s(&kept["scores"]))
            .zip(f32s(&kept["boxes"]).as_chunks::<4>().0)
            .map(|(((image, label), score), corners)| (image, label, score, *corners))
            .collect();
        assert_eq!(found, expected, "{}", case.name);
    }
}

fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let area = |b: [f32; 4]| (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0);
    let both = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    both / (area(a) + area(b) - both)
}

#[test]
fn options_that_a_head_does_not_have_are_refused() {
    let path = Path::new("never.onnx");
    for case in cases() {
        let detects = case.head.task() == Task::Detect;
        let wrong = match detects {
            true => ModelExport { logits: true, ..ModelExport::default() },
            false => ModelExport { suppress: Some(Suppress::default()), ..ModelExport::default() },
        };
        assert!(export_model(path, &case.model, &wrong).is_err());
        if detects {
            for suppress in [
                Suppress { iou: 1.5, ..Suppress::default() },
                Suppress { score: f32::NAN, ..Suppress::default() },
                Suppress { per_class: 0, ..Suppress::default() },
            ] {
                let options = ModelExport { suppress: Some(suppress), ..ModelExport::default() };
                assert!(export_model(path, &case.model, &options).unwrap_err().to_string().contains("suppression"));
            }
        }
        assert!(!path.exists());
    }
}

/// A map [n, height, width, channels] as [n, channels, height, width]; a vector as it is.
fn nchw(values: &[f32], shape: Shape) -> Vec<f32> {
    let Shape::Map { channels, height, width } = shape else { return values.to_vec() };
    let mut moved = vec![0.0; values.len()];
    for (i, value) in values.iter().enumerate() {
        let (pixel, channel) = (i / channels, i % channels);
        let (image, place) = (pixel / (height * width), pixel % (height * width));
        moved[(image * channels + channel) * height * width + place] = *value;
    }
    moved
}
