//! Class folders and tables.

use super::*;

#[test]
fn folders_are_classes_and_parts_share_their_numbers() {
    let root = tempfile::tempdir().unwrap();
    for name in ["train/cat/a.png", "train/ant/deep/b.png", "train/bee/c.png", "val/bee/d.png"] {
        picture(&root.path().join(name), 4, 3);
    }
    let opened = open_as(root.path(), Task::Classify).unwrap();
    assert_eq!(
        (opened.layout, opened.train.classes()),
        ("class folders", &["ant", "bee", "cat"].map(String::from)[..])
    );
    assert_eq!(names(&*opened.train), ["train/ant/deep/b.png", "train/bee/c.png", "train/cat/a.png"]);
    let sample = opened.train.get(2).unwrap();
    assert_eq!((sample.target, sample.image.size(), sample.image.channels()), (Target::Class(2), (3, 4), 1));
    let validation = opened.validation.unwrap();
    assert_eq!((validation.len(), validation.target(0).unwrap()), (1, Target::Class(1)));
    picture(&root.path().join("val/dog/e.png"), 4, 3);
    let error = error_of(open_as(root.path(), Task::Classify));
    assert!(error.contains("`dog` is none of `ant`, `bee`, `cat`"), "{error}");
    let error = error_of(open_part(root.path(), Task::Classify, &DataOptions::default(), "test"));
    assert!(error.contains("no part `test`: it has `train`, `val`"), "{error}");
}

#[test]
fn images_outside_class_folders_and_single_classes_are_refused() {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("a/1.png"), 4, 4);
    assert!(error_of(open_as(root.path(), Task::Classify)).contains("one class only, `a`"));
    picture(&root.path().join("stray.png"), 4, 4);
    assert!(error_of(open_as(root.path(), Task::Classify)).contains("stray.png: lies in no class folder"));
    let empty = tempfile::tempdir().unwrap();
    assert!(error_of(open_as(empty.path(), Task::Classify)).contains("no files at all"));
    assert!(error_of(open_as(&root.path().join("nowhere"), Task::Classify)).contains("nowhere"));
}

#[test]
fn tables_name_classes_in_a_cell_or_have_a_column_for_each() {
    let root = tempfile::tempdir().unwrap();
    for name in ["images/a.png", "images/b.png", "images/c, d.png"] {
        picture(&root.path().join(name), 4, 4);
    }
    write(&root.path().join("labels.csv"), "file,label\na.png,red; round\nb.png,\n\"c, d.png\",round\n");
    let opened = open_as(root.path(), Task::Classify).unwrap();
    assert_eq!((opened.train.task(), opened.layout), (Task::MultiLabel, "table"));
    assert_eq!(opened.train.classes(), ["red", "round"]);
    let targets: Vec<_> = (0..3).map(|i| opened.train.target(i).unwrap()).collect();
    assert_eq!(targets, [vec![0, 1], vec![], vec![1]].map(Target::Classes));
    let table = root.path().join("one.csv");
    write(&table, "file,round,red\na.png,1,0\nb.png,0,1\n");
    let opened = open_as(&table, Task::Classify).unwrap();
    assert_eq!((opened.train.task(), opened.train.target(1).unwrap()), (Task::Classify, Target::Class(1)));
    let opened = open_as(&table, Task::MultiLabel).unwrap();
    assert_eq!(opened.train.target(1).unwrap(), Target::Classes(vec![1]));
    let options = DataOptions { classes: vec!["red".into(), "round".into()], ..DataOptions::default() };
    let opened = open(&table, Task::Classify, &options).unwrap();
    assert_eq!(opened.train.target(1).unwrap(), Target::Class(0));
}

#[test]
fn what_is_wrong_with_a_table_is_listed_by_line() {
    let root = tempfile::tempdir().unwrap();
    picture(&root.path().join("a.png"), 4, 4);
    let table = root.path().join("t.csv");
    write(&table, "file,red,round\na.png,1,maybe\nb.png,0,1\na.png,1,0\n../a.png,1,0\n");
    let error = error_of(open_as(&table, Task::Classify));
    for part in [
        "line 2, column `round`: `maybe`",
        "line 3: there is no file `b.png`",
        "line 4: `a.png` stands in line 2",
        "line 5: the file name \"../a.png\"",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    write(&table, "file,red\na.png,1,1\n");
    assert!(
        error_of(open_as(&table, Task::Classify)).contains("line: 2"),
        "{}",
        error_of(open_as(&table, Task::Classify))
    );
    write(&table, "file,label\na.png,x\n");
    assert!(error_of(open_as(&table, Task::Classify)).contains("nothing can be told apart"));
    write(&table, "");
    assert!(error_of(open_as(&table, Task::Classify)).contains("header"));
}
