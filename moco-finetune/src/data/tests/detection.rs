//! Pascal VOC and COCO.

use std::path::PathBuf;

use super::*;
use crate::task::{BBox, LabelledBox};

fn boxes_of(data: &dyn LabelledData, index: usize) -> Vec<LabelledBox> {
    match data.get(index).unwrap().target {
        Target::Boxes(boxes) => boxes,
        other => panic!("{other:?}"),
    }
}

fn edges(b: &LabelledBox) -> [f32; 4] {
    [b.bbox.x0, b.bbox.y0, b.bbox.x1, b.bbox.y1]
}

fn object(name: &str, [x0, y0, x1, y1]: [i32; 4], difficult: u8) -> String {
    format!(
        "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>\
         <xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>\n"
    )
}

fn annotation(objects: &str) -> String {
    format!("<annotation>\n<size><width>8</width><height>6</height><depth>1</depth></size>\n{objects}</annotation>")
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/annotations").join(name)
}

/// A VOC folder whose one XML file is the fixture.
fn voc_with(name: &str) -> (tempfile::TempDir, Result<Opened>) {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("JPEGImages/a.png"), 640, 480);
    picture(&root.path().join("JPEGImages/b.png"), 8, 6);
    write(&root.path().join("Annotations/b.xml"), &annotation(&object("RBC", [1, 1, 4, 4], 0)));
    std::fs::copy(fixture(name), root.path().join("Annotations/a.xml")).unwrap();
    let opened = open_as(root.path(), Task::Detect);
    (root, opened)
}

#[test]
fn voc_pixels_count_from_one_and_include_the_last() {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("JPEGImages/a.png"), 8, 6);
    picture(&root.path().join("JPEGImages/b.png"), 8, 6);
    let objects = object("dog", [1, 1, 8, 6], 0) + &object("cat", [3, 2, 4, 5], 1);
    write(&root.path().join("Annotations/a.xml"), &annotation(&objects));
    write(&root.path().join("Annotations/b.xml"), &annotation(""));
    write(&root.path().join("ImageSets/Main/train.txt"), "a\n");
    write(&root.path().join("ImageSets/Main/val.txt"), "b 1\na 1\n");
    write(&root.path().join("ImageSets/Main/dog_train.txt"), "a 1\n");
    let opened = open_as(root.path(), Task::Detect).unwrap();
    assert_eq!((opened.layout, opened.train.classes()), ("Pascal VOC", &["cat", "dog"].map(String::from)[..]));
    let boxes = boxes_of(&*opened.train, 0);
    assert_eq!(boxes.iter().map(edges).collect::<Vec<_>>(), [[0.0, 0.0, 8.0, 6.0], [2.0, 1.0, 4.0, 5.0]]);
    assert_eq!(boxes.iter().map(|b| (b.label, b.ignore)).collect::<Vec<_>>(), [(1, false), (0, true)]);
    let validation = opened.validation.unwrap();
    assert_eq!((boxes_of(&*validation, 0).len(), boxes_of(&*validation, 1).len()), (0, 2));
    let options = DataOptions { voc_coordinates: VocCoordinates::Edges, ..DataOptions::default() };
    let (train, _) = open_part(root.path(), Task::Detect, &options, "train").unwrap();
    assert_eq!(edges(&boxes_of(&*train, 0)[1]), [3.0, 2.0, 4.0, 5.0]);
    write(&root.path().join("ImageSets/Main/train.txt"), "a\nghost\n");
    let error = error_of(open_as(root.path(), Task::Detect));
    assert!(error.contains("train.txt, line 2") && error.contains("ghost.xml"), "{error}");
}

#[test]
fn parts_of_voc_may_be_folders() {
    let root = tempfile::tempdir().unwrap();
    for part in ["train", "test"] {
        picture(&root.path().join(part).join("JPEGImages/a.png"), 8, 6);
        write(&root.path().join(part).join("Annotations/a.xml"), &annotation(&object(part, [1, 1, 4, 4], 0)));
    }
    let error = error_of(open_as(root.path(), Task::Detect));
    assert!(error.contains("a.xml, line 3: the class `test` is none of `train`"), "{error}");
    write(&root.path().join("test/Annotations/a.xml"), &annotation(&object("train", [1, 1, 4, 4], 0)));
    let opened = open_as(root.path(), Task::Detect).unwrap();
    assert_eq!((opened.train.len(), opened.validation.unwrap().len()), (1, 1));
}

#[test]
fn wrong_voc_files_are_refused_and_odd_ones_put_right_with_a_note() {
    for (name, expected) in [
        ("ann_voc_nan.xml", "expected finite numbers"),
        ("ann_voc_cut.xml", "a.xml: no XML"),
        ("ann_voc_entities.xml", "a.xml: no XML"),
    ] {
        let error = error_of(voc_with(name).1);
        assert!(error.contains(expected), "{name}: {error}");
    }
    for (name, boxes, note) in [
        ("ann_voc_inverted.xml", 0, "edges have changed places"),
        ("ann_voc_zero_area.xml", 0, "has no area"),
        ("ann_voc_outside.xml", 1, "cut off at the border"),
        ("ann_voc_empty.xml", 0, ""),
        ("ann_voc_no_size.xml", 1, ""),
        ("ann_voc_float.xml", 1, ""),
    ] {
        let (_root, opened) = voc_with(name);
        let opened = opened.unwrap();
        assert_eq!(boxes_of(&*opened.train, 0).len(), boxes, "{name}");
        assert!(opened.notes.iter().any(|n| n.contains(note)) || note.is_empty(), "{name}: {:?}", opened.notes);
    }
    let (_root, opened) = voc_with("ann_voc_outside.xml");
    assert_eq!(edges(&boxes_of(&*opened.unwrap().train, 0)[0]), [0.0, 9.0, 640.0, 480.0]);
    let (root, _) = voc_with("ann_voc_inverted.xml");
    let options = DataOptions { empty_boxes: EmptyBoxes::Refuse, ..DataOptions::default() };
    assert!(error_of(open(root.path(), Task::Detect, &options)).contains("a.xml, line 1"));
}

#[test]
fn an_image_of_another_size_than_its_xml_says_is_refused() {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("JPEGImages/a.png"), 6, 8);
    write(&root.path().join("Annotations/a.xml"), &annotation(&object("x", [1, 1, 4, 4], 0)));
    let opened = open_as(root.path(), Task::Detect).unwrap();
    let error = error_of(opened.train.get(0));
    assert!(error.contains("8 × 6") && error.contains("6 × 8") && error.contains("EXIF"), "{error}");
}

fn coco(annotations: &str) -> (tempfile::TempDir, Result<Opened>) {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("images/a.png"), 8, 6);
    picture(&root.path().join("images/b.png"), 8, 6);
    let images = r#"[{"id":5,"file_name":"a.png","width":8,"height":6},{"id":3,"file_name":"b.png"}]"#;
    let categories = r#"[{"id":90,"name":"dog"},{"id":7,"name":"cat"}]"#;
    let json = format!(r#"{{"info":{{}},"images":{images},"categories":{categories},"annotations":{annotations}}}"#);
    write(&root.path().join("instances.json"), &json);
    let opened = open_as(root.path(), Task::Detect);
    (root, opened)
}

#[test]
fn coco_boxes_are_edges_and_categories_are_numbered_by_id() {
    let (_root, opened) = coco(
        r#"[{"id":1,"image_id":5,"category_id":90,"bbox":[1.5,2,3,2.5],"iscrowd":0,"segmentation":[[1,2,3]]},
            {"id":2,"image_id":5,"category_id":7,"bbox":[0,0,8,6],"iscrowd":1}]"#,
    );
    let opened = opened.unwrap();
    assert_eq!((opened.layout, opened.train.classes()), ("COCO", &["cat", "dog"].map(String::from)[..]));
    let boxes = boxes_of(&*opened.train, 0);
    assert_eq!(boxes[0], LabelledBox { bbox: BBox { x0: 1.5, y0: 2.0, x1: 4.5, y1: 4.5 }, label: 1, ignore: false });
    assert_eq!((boxes[1].label, boxes[1].ignore), (0, true));
    assert!(boxes_of(&*opened.train, 1).is_empty());
    assert!(opened.notes.iter().any(|n| n.contains("image without an object") && n.contains("b.png")));
}

#[test]
fn what_is_wrong_with_coco_is_listed_by_annotation() {
    let (_root, opened) = coco(
        r#"[{"id":1,"image_id":5,"category_id":7,"bbox":[0,0,3,3]},{"id":11,"image_id":99,"category_id":7,"bbox":[0,0,1,1]},
            {"id":12,"image_id":5,"category_id":8,"bbox":[0,0,1,1]},{"id":13,"image_id":5,"category_id":7,"bbox":[0,0,1]},
            {"image_id":5,"category_id":7}]"#,
    );
    let error = error_of(opened);
    for part in [
        "annotation 11: there is no image 99",
        "annotation 12: there is no category 8",
        "annotation 13: `bbox`",
        "annotation number 4 in the list",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let (_root, opened) = coco(
        r#"[{"id":1,"image_id":5,"category_id":7,"bbox":[0,0,3,3]},{"id":2,"image_id":5,"category_id":7,"bbox":[1,2,-3,4]}]"#,
    );
    assert!(opened.unwrap().notes[0].contains("annotation 2"));
}

#[test]
fn hostile_coco_files_are_refused() {
    for (name, expected) in [
        ("ann_coco_unknown_image.json", "annotation 1: there is no image 99"),
        ("ann_coco_unknown_category.json", "annotation 1: there is no category 3"),
        ("ann_coco_negative_wh.json", "no boxes at all"),
        ("ann_coco_traversal.json", "without `..`"),
    ] {
        let root = tempfile::tempdir().unwrap();
        picture(&root.path().join("a.jpg"), 640, 480);
        std::fs::copy(fixture(name), root.path().join("a.json")).unwrap();
        let error = error_of(open_as(root.path(), Task::Detect));
        assert!(error.contains(expected), "{name}: {error}");
    }
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("deep.json"), &"[".repeat(100_000));
    assert!(error_of(open_as(root.path(), Task::Detect)).contains("deep.json: not COCO's JSON"));
    write(&root.path().join("deep.json"), "{\"images\": [], \"annotations\": [],");
    assert!(error_of(open_as(root.path(), Task::Detect)).contains("line 1"));
}

#[test]
fn parts_of_coco_are_told_by_the_names_of_their_files() {
    let root = tempfile::tempdir().unwrap();
    for part in ["train", "val"] {
        picture(&root.path().join(format!("{part}2017/{part}.png")), 8, 6);
        let json = format!(
            r#"{{"images":[{{"id":1,"file_name":"{part}.png","width":8,"height":6}}],"categories":[{{"id":1,"name":"x"}}],
                "annotations":[{{"id":1,"image_id":1,"category_id":1,"bbox":[1,1,2,2]}}]}}"#
        );
        write(&root.path().join(format!("annotations/instances_{part}2017.json")), &json);
    }
    let opened = open_as(root.path(), Task::Detect).unwrap();
    assert_eq!(names(&*opened.train), ["train2017/train.png"]);
    assert_eq!(names(&*opened.validation.unwrap()), ["val2017/val.png"]);
    let options =
        DataOptions { annotations: Some("annotations/instances_val2017.json".into()), ..DataOptions::default() };
    let opened = open(root.path(), Task::Detect, &options).unwrap();
    assert_eq!(names(&*opened.train), ["val2017/val.png"]);
}
