//! Fine-tuned models asked about images: from a model file, from its exported ONNX file, and by the program.

use std::path::Path;
use std::process::Command;

use moco_image::{Image, Raster};
use moco_infer::{NetworkOptions, PredictedBox, Prediction, Predictor, PredictorOptions};
use moco_models::arch::ArchSpec;
use moco_models::card::Card;
use moco_models::heads::{Fit, HeadCard, HeadSpec, InputRule, Task};
use moco_models::init::initialise;
use moco_models::onnx::{ModelExport, Suppress, export_model};
use moco_models::weights::{ModelFile, save_backbone, save_model};

const SIZE: [usize; 2] = [64, 96];

fn model(path: &Path, task: Task, text: &str, fit: Fit) -> ModelFile {
    let arch = ArchSpec { width: 0.125, ..ArchSpec::new("resnet18") };
    let backbone = arch.build().unwrap();
    let head = HeadSpec::parse(task, text, 3).unwrap();
    let graph = head.attach(&backbone).unwrap();
    let mut weights = head.initialise(&graph, &backbone, &initialise(&backbone, 1), 2).unwrap();
    // Untrained scores are all alike: these differ from place to place and class to class.
    for (spec, range) in graph.parameter_layout().iter() {
        if ["head.classifier.weight", "head.cls.logits.weight", "head.box.distances.weight"].contains(&&*spec.name) {
            weights.params[range].iter_mut().for_each(|v| *v *= 20.0);
        } else if spec.name == "head.cls.logits.bias" {
            weights.params[range].fill(0.0);
        }
    }
    let card = Card::new(arch, "test").unwrap();
    let names = ["cat", "dog", "eel"].map(String::from).to_vec();
    let mut head = HeadCard::new(head, names, &card, SIZE).unwrap();
    head.input = InputRule { size: SIZE, fit };
    save_model(path, &graph, &weights, &card, &head).unwrap();
    ModelFile::open(path).unwrap()
}

fn noise(width: usize, height: usize) -> Image {
    let value = |i: usize| ((i + 1).wrapping_mul(2_654_435_761) >> 9) as u8;
    Image::new(width, height, 3, (0..width * height * 3).map(value).collect()).unwrap()
}

fn flat(width: usize, height: usize) -> Image {
    Image::new(width, height, 3, [200, 30, 90].repeat(width * height)).unwrap()
}

fn options() -> PredictorOptions {
    let network = NetworkOptions { threads: 1, ..NetworkOptions::default() };
    let suppress = Suppress { score: 0.3, ..Suppress::default() };
    PredictorOptions { network, suppress, ..PredictorOptions::default() }
}

fn heads() -> [(Task, &'static str); 5] {
    [
        (Task::Classify, "linear"),
        (Task::MultiLabel, "mlp:8"),
        (Task::Segment, "fpn:8"),
        (Task::Segment, "unet:4"),
        (Task::Detect, "fcos:width=8,convs=1,levels=3-5"),
    ]
}

#[test]
fn a_model_and_its_exported_file_answer_alike_however_images_are_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let (path, onnx) = (folder.path().join("model.safetensors"), folder.path().join("model.onnx"));
    let images = [noise(96, 64), noise(50, 120), noise(131, 40)];
    for (task, text) in heads() {
        for fit in [Fit::Stretch, Fit::Letterbox, Fit::Cover { shorter: 70 }, Fit::Native] {
            let file = model(&path, task, text, fit);
            let suppress = (task == Task::Detect).then_some(options().suppress);
            export_model(&onnx, &file, &ModelExport { suppress, ..ModelExport::default() }).unwrap();
            let mut of_file = Predictor::open(folder.path(), &options()).unwrap();
            let mut of_onnx = Predictor::open(&onnx, &options()).unwrap();
            assert_eq!(of_onnx.head(), file.head());
            for image in &images {
                let (width, height) = (image.width(), image.height());
                let answer = match (of_file.predict(image), task, fit) {
                    (Err(error), Task::Segment, Fit::Cover { .. }) => {
                        assert!(error.to_string().contains("centre"), "{error}");
                        continue;
                    }
                    (answer, ..) => answer.unwrap(),
                };
                assert_eq!(answer, of_onnx.predict(image).unwrap(), "{text} {fit:?}");
                assert_eq!(answer, of_file.predict(&Raster::from(image.clone())).unwrap(), "{text} {fit:?}");
                match answer {
                    Prediction::Class(p) => assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5 && p.len() == 3),
                    Prediction::Classes(p) => assert!(p.iter().all(|p| (0.0..=1.0).contains(p)) && p.len() == 3),
                    Prediction::Mask(mask) => {
                        assert_eq!((mask.width, mask.height, mask.classes.len()), (width, height, width * height));
                        assert!(mask.classes.iter().all(|class| *class < 3));
                    }
                    Prediction::Boxes(boxes) => {
                        assert!(!boxes.is_empty() && boxes.len() <= 100);
                        assert!(boxes.is_sorted_by(|a, b| a.score >= b.score) && boxes.iter().all(|b| b.score > 0.3));
                        let [w, h] = [width as f32, height as f32];
                        let inside = |b: &PredictedBox| {
                            let [x0, y0, x1, y1] = b.edges;
                            0.0 <= x0 && x0 < x1 && x1 <= w && 0.0 <= y0 && y0 < y1 && y1 <= h
                        };
                        assert!(boxes.iter().all(inside), "{fit:?} {width}×{height}: {boxes:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn boxes_and_masks_follow_the_size_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // An image of one colour is the same input at any size.
    for (fit, sizes) in [(Fit::Stretch, [(96, 64), (48, 320)]), (Fit::Letterbox, [(96, 64), (288, 192)])] {
        let (small, large) = (flat(sizes[0].0, sizes[0].1), flat(sizes[1].0, sizes[1].1));
        let factor = [sizes[1].0 as f32 / sizes[0].0 as f32, sizes[1].1 as f32 / sizes[0].1 as f32];
        model(&path, Task::Detect, "fcos:width=8,convs=1,levels=3-5", fit);
        let mut detector = Predictor::open(&path, &options()).unwrap();
        let (Prediction::Boxes(a), Prediction::Boxes(b)) =
            (detector.predict(&small).unwrap(), detector.predict(&large).unwrap())
        else {
            panic!("a detector finds boxes")
        };
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(&b) {
            for (i, (a, b)) in a.edges.iter().zip(b.edges).enumerate() {
                assert!((a * factor[i % 2] - b).abs() < 0.05, "{fit:?}: {a} becomes {b}");
            }
        }
        model(&path, Task::Segment, "unet:4", fit);
        let mut segmenter = Predictor::open(&path, &options()).unwrap();
        let (Prediction::Mask(a), Prediction::Mask(b)) =
            (segmenter.predict(&small).unwrap(), segmenter.predict(&large).unwrap())
        else {
            panic!("a decoder makes masks")
        };
        let same = (0..b.classes.len()).filter(|i| {
            let (y, x) = (i / b.width * a.height / b.height, i % b.width * a.width / b.width);
            b.classes[*i] == a.classes[y * a.width + x]
        });
        assert!(same.count() * 10 > b.classes.len() * 9, "{fit:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let (path, onnx) = (folder.path().join("model.safetensors"), folder.path().join("model.onnx"));
    let error = |path: &Path| Predictor::open(path, &options()).unwrap_err().to_string();
    model(&path, Task::Segment, "fpn:8", Fit::Tiles { overlap: 8 });
    assert!(error(&path).contains("windows"), "{}", error(&path));
    let file = model(&path, Task::Detect, "", Fit::Stretch);
    export_model(&onnx, &file, &ModelExport::default()).unwrap();
    assert!(error(&onnx).contains("suppression"), "{}", error(&onnx));
    std::fs::write(&onnx, "no model").unwrap();
    assert!(error(&onnx).contains("model.onnx"), "{}", error(&onnx));
    let (graph, weights, card) = file.backbone().unwrap();
    let backbone = folder.path().join("backbone.safetensors");
    save_backbone(&backbone, &graph, &weights, &card).unwrap();
    assert!(error(&backbone).contains("not a fine-tuned model"), "{}", error(&backbone));
    let mut predictor = Predictor::open(&path, &options()).unwrap();
    let two = Image::new(4, 4, 2, vec![0; 32]).unwrap();
    assert!(predictor.predict(&two).unwrap_err().to_string().contains("channels"));
}

#[test]
fn the_program_writes_answers_for_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (images, path) = (folder.path().join("images"), folder.path().join("model.safetensors"));
    std::fs::create_dir_all(images.join("sub")).unwrap();
    let picture = noise(70, 50);
    for name in ["a.png", "sub/b.png"] {
        let mut encoder = png::Encoder::new(std::fs::File::create(images.join(name)).unwrap(), 70, 50);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(picture.data()).unwrap();
    }
    std::fs::write(images.join("c.png"), "no picture").unwrap();
    for (task, text) in heads() {
        model(&path, task, text, Fit::Stretch);
        let out = folder.path().join(format!("{task} {text}").replace([':', ',', '='], "_"));
        let run = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_moco-infer"));
            command.arg("predict").arg(&images).arg("--model").arg(&path).arg("--out").arg(&out);
            command.args(["--threads", "1"]).output().unwrap()
        };
        let result = run();
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        assert!(String::from_utf8_lossy(&result.stdout).contains("2 images"), "{result:?}");
        let text = std::fs::read_to_string(out.join("predictions.jsonl")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].contains("\"error\"") && lines[1].contains("c.png"), "{text}");
        let expected = Predictor::open(&path, &options()).unwrap().predict(&picture).unwrap();
        let key = match &expected {
            Prediction::Class(_) => "\"class\":",
            Prediction::Classes(_) => "\"classes\":",
            Prediction::Boxes(_) => "\"boxes\":[{",
            Prediction::Mask(mask) => {
                let bytes = std::fs::read(out.join("masks/sub/b.png.png")).unwrap();
                let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
                let mut values = vec![0; 70 * 50];
                reader.next_frame(&mut values).unwrap();
                assert_eq!(values, mask.classes);
                "\"mask\":\"masks/sub/b.png.png\""
            }
        };
        assert!(lines[2].contains(key) && lines[2].contains("sub/b.png") && lines[2].contains("eel"), "{text}");
        let again = run();
        assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--force"));
    }
}
