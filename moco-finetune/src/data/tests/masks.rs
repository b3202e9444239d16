//! Folders of masks.

use super::*;
use png::BitDepth::{Eight, Sixteen};

fn mask_of(data: &dyn LabelledData, index: usize) -> Vec<u8> {
    match data.get(index).unwrap().target {
        Target::Mask(mask) => mask.into_data(),
        other => panic!("{other:?}"),
    }
}

fn with(masks: MaskMeaning) -> DataOptions {
    DataOptions { masks, ..DataOptions::default() }
}

#[test]
fn masks_of_two_values_are_background_and_foreground() {
    let root = tempfile::tempdir().unwrap();
    for (part, name) in [("train", "1"), ("train", "10"), ("val", "2")] {
        picture(&root.path().join(format!("{part}/image/{name}.png")), 2, 2);
        write_png(&root.path().join(format!("{part}/label/{name}.png")), 2, 2, &[0, 255, 255, 0], Eight);
    }
    let opened = open_as(root.path(), Task::Segment).unwrap();
    assert_eq!((opened.train.len(), opened.validation.as_ref().unwrap().len()), (2, 1));
    assert_eq!(opened.train.classes(), ["background", "foreground"]);
    assert_eq!(mask_of(&*opened.train, 0), [0, 1, 1, 0]);
    assert!(opened.notes[0].contains("only 0 and 255"), "{:?}", opened.notes);
    write(&root.path().join("classes.txt"), "membrane\ncell\n");
    assert_eq!(open_as(root.path(), Task::Segment).unwrap().train.classes(), ["membrane", "cell"]);
}

#[test]
fn names_of_masks_may_go_on_after_the_image_s() {
    let root = tempfile::tempdir().unwrap();
    for name in ["Image_1", "Image_10", "Image_2"] {
        picture(&root.path().join(format!("images/{name}.png")), 2, 1);
        write_png(&root.path().join(format!("labels_1st/{name}_1stHO.png")), 2, 1, &[0, 1], Eight);
    }
    let error = error_of(open_as(root.path(), Task::Segment));
    assert!(error.contains("labels_1st") && error.contains("annotations = "), "{error}");
    let options = DataOptions { annotations: Some("labels_1st".into()), ..DataOptions::default() };
    let opened = open(root.path(), Task::Segment, &options).unwrap();
    assert_eq!((opened.train.len(), mask_of(&*opened.train, 1)), (3, vec![0, 1]));
    let flat = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        picture(&flat.path().join(format!("{name}.png")), 2, 1);
        write_png(&flat.path().join(format!("{name}_mask.png")), 2, 1, &[0, 255], Eight);
    }
    assert_eq!(names(&*open_as(flat.path(), Task::Segment).unwrap().train), ["a.png", "b.png"]);
}

#[test]
fn indices_need_names_or_get_numbers_and_255_is_ignored() {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("images/a.png"), 4, 1);
    let mask = root.path().join("masks/a.png");
    write_png(&mask, 4, 1, &[0, 3, 255, 1], Eight);
    let opened = open_as(root.path(), Task::Segment).unwrap();
    assert_eq!(opened.train.classes(), ["class 0", "class 1", "class 2", "class 3"]);
    assert_eq!(mask_of(&*opened.train, 0), [0, 3, 255, 1]);
    write(&root.path().join("classes.csv"), "id,name\n0,none\n2,dog\n");
    let opened = open_as(root.path(), Task::Segment).unwrap();
    assert_eq!(opened.train.classes(), ["none", "class 1", "dog"]);
    let error = error_of(opened.train.get(0));
    assert!(error.contains("a.png") && error.contains("the number 3 at row 0, column 1"), "{error}");
    write(&root.path().join("classes.csv"), "id,name\n0,none\nx,dog\n");
    assert!(error_of(open_as(root.path(), Task::Segment)).contains("classes.csv: line 3"));
}

#[test]
fn instances_and_shades_are_foreground_only_if_told() {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("images/a.png"), 3, 1);
    write_png(&root.path().join("masks/a.png"), 3, 1, &[0, 700, 2], Sixteen);
    let error = error_of(open_as(root.path(), Task::Segment));
    assert!(error.contains("up to 700") && error.contains("foreground"), "{error}");
    let opened = open(root.path(), Task::Segment, &with(MaskMeaning::Foreground)).unwrap();
    assert_eq!(mask_of(&*opened.train, 0), [0, 1, 1]);
    let opened = open(root.path(), Task::Segment, &with(MaskMeaning::Threshold(3))).unwrap();
    assert_eq!(mask_of(&*opened.train, 0), [0, 1, 0]);
    let opened = open(root.path(), Task::Segment, &with(MaskMeaning::Binary)).unwrap();
    assert!(error_of(opened.train.get(0)).contains("threshold:128"));
}

#[test]
fn masks_that_are_missing_or_of_another_size_are_named() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        picture(&root.path().join(format!("images/{name}.png")), 2, 2);
    }
    write_png(&root.path().join("masks/a.png"), 2, 2, &[0, 255, 0, 0], Eight);
    write_png(&root.path().join("masks/b.png"), 2, 1, &[0, 255], Eight);
    let error = error_of(open_as(root.path(), Task::Segment));
    assert!(error.contains("c.png") && error.contains("1 of 3 images have no mask"), "{error}");
    let options = DataOptions { unpaired: Unpaired::Skip, ..DataOptions::default() };
    let opened = open(root.path(), Task::Segment, &options).unwrap();
    assert_eq!(opened.train.len(), 2);
    assert!(opened.notes.iter().any(|note| note.contains("c.png")), "{:?}", opened.notes);
    let error = error_of(opened.train.get(1));
    assert!(error.contains("b.png") && error.contains("2 × 1") && error.contains("2 × 2"), "{error}");
}

#[test]
fn slices_of_a_volume_have_the_slices_of_its_mask() {
    let root = tempfile::tempdir().unwrap();
    let volume = |name: &str, depth: u16, kind: u16, data: Vec<u8>| {
        let mut bytes = vec![0u8; 352];
        bytes[..4].copy_from_slice(&348u32.to_le_bytes());
        for (i, size) in [3u16, 2, 1, depth, 1, 1, 1, 1].iter().enumerate() {
            bytes[40 + 2 * i..42 + 2 * i].copy_from_slice(&size.to_le_bytes());
        }
        bytes[70..72].copy_from_slice(&kind.to_le_bytes());
        bytes[72..74].copy_from_slice(&(8 * data.len() as u16 / (2 * depth)).to_le_bytes());
        bytes[108..112].copy_from_slice(&352f32.to_le_bytes());
        bytes[344..348].copy_from_slice(b"n+1\0");
        bytes.extend(data);
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let values: Vec<u8> = [-1000i16, 40, 300, 1200].iter().flat_map(|v| v.to_le_bytes()).collect();
    volume("images/ct.nii", 2, 4, values);
    volume("masks/ct.nii", 2, 2, vec![0, 1, 2, 0]);
    let options = DataOptions { values: Some("window:-160,240".parse().unwrap()), ..DataOptions::default() };
    let opened = open(root.path(), Task::Segment, &options).unwrap();
    assert_eq!(names(&*opened.train), ["images/ct.nii#0", "images/ct.nii#1"]);
    assert_eq!((opened.train.bit_depth(), opened.train.channels(), opened.train.classes().len()), (16, 1, 3));
    let masks: Vec<u8> = (0..2).flat_map(|i| mask_of(&*opened.train, i)).collect();
    assert_eq!(masks.len(), 4);
    assert_eq!(masks.iter().filter(|&&v| v == 2).count(), 1);
    volume("masks/ct.nii", 1, 2, vec![0, 1]);
    assert!(error_of(open(root.path(), Task::Segment, &options)).contains("another number of images than its mask"));
}
