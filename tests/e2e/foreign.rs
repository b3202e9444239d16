//! A file of others gives the same features whether it is imported first or opened as it is.

use std::path::Path;

use moco_infer::{Backbone, Extractor, ExtractorOptions};
use moco_models::import::{ImportOptions, import};

#[test]
fn files_of_others_need_no_import_to_give_features() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fixtures");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pictures = &moco_infer::image_files(&root.join("examples/data/groceries/test")).unwrap()[..3];
    let folder = tempfile::tempdir().unwrap();
    for name in ["moco_v1.pth.tar", "moco_v3.pth.tar", "detectron2_protocol4.pkl", "torchvision_half.pth"] {
        let path = fixtures.join(name);
        let imported = folder.path().join(format!("{name}.safetensors"));
        import(&path, &ImportOptions::default()).unwrap().save(&imported).unwrap();
        let features = |place: &Path| {
            let options = ExtractorOptions { taps: vec!["c3".into(), "pooled".into()], ..ExtractorOptions::default() };
            let extractor = Extractor::new(&Backbone::open(place).unwrap(), &options).unwrap();
            extractor.extract_files(pictures, &mut |_| ()).unwrap().features
        };
        let (as_it_is, after_import) = (features(&path), features(&imported));
        assert_eq!(as_it_is.len(), 2);
        for (a, b) in as_it_is.iter().zip(&after_import) {
            assert!(a.data == b.data && a.data.iter().any(|v| *v != 0.0), "{name}, {}", a.tap);
        }
    }
}
