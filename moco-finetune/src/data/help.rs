//! Layouts explained, for the help of programs.

use crate::task::Task;

/// How data for a task is laid out, in words: what a program's help says about its folder.
pub fn layouts_in_words(task: Task) -> &'static str {
    match task {
        Task::Classify | Task::MultiLabel => CLASSIFY,
        Task::Segment => SEGMENT,
        Task::Detect => DETECT,
    }
}

const CLASSIFY: &str = "\
Class folders (one class an image):
  DATA/cat/1.jpg, DATA/dog/2.png …                classes are the names of the first-level folders
  DATA/train/cat/1.jpg, DATA/val/cat/9.jpg …      with a held-out part: val, valid, validation or test
A table (one class or several an image), a CSV file with a header:
  file,label            1.jpg,cat;outdoors        names of classes in one cell, `;` or `|` between them
  file,cat,outdoors     1.jpg,1,0                 one column a class, 1 or 0
  Files are named below the table's folder or its images/. A folder may hold labels.csv, or train.csv and val.csv.";

const SEGMENT: &str = "\
Images and masks of the same size in two folders, paired by name:
  DATA/images/1.png, DATA/masks/1.png             also label/, labels/, gt/ …; names may go on: 1_mask.png, 1_1stHO.png
  DATA/train/images/…, DATA/val/images/…          with a held-out part; or images/train/…, masks/train/…
  DATA/1.png, DATA/1_mask.png                     side by side
  DATA/JPEGImages, SegmentationClass, ImageSets/Segmentation/train.txt (Pascal VOC)
  DATA/images/ct.nii.gz, DATA/masks/ct.nii.gz     volumes: slice by slice
Values of masks are read as stored (palette indices, 1 to 16 bits):
  auto (default)    0 and 255, or 0 and 1: background and foreground; otherwise numbers of classes
  index             numbers of classes from 0; 255 is ignored in training and evaluation
  binary            0 and 255, or 0 and 1, nothing else
  foreground        all but 0 is foreground: masks that number instances
  threshold:128     values from 128 on are foreground: shades, masks that went through JPEG
Names of classes: classes.txt, a name a line, or classes.csv, `number,name`, in DATA.";

const DETECT: &str = "\
Pascal VOC:
  DATA/JPEGImages/1.jpg, DATA/Annotations/1.xml, DATA/ImageSets/Main/train.txt and val.txt
  DATA/train/{JPEGImages,Annotations}, DATA/val/{…}
  Pixels are counted from 1 and xmax, ymax belong to the box, as the development kit has it; for tools that write
  edges from 0 choose `edges` as VOC coordinates. An object marked difficult is ignored.
COCO:
  DATA/annotations/instances_train2017.json and DATA/train2017/1.jpg, or one JSON file beside images/
  DATA/train/_annotations.coco.json beside its images
  Categories are numbered in the order of their ids. A crowd is ignored. Listed images without annotations have no
  objects; images that are not listed are not read.
Boxes that reach outside their image are cut off; boxes without an area, or with edges that have changed places,
are left out and counted.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_explained_in_lines_of_a_terminal() {
        for task in [Task::Classify, Task::MultiLabel, Task::Segment, Task::Detect] {
            let text = layouts_in_words(task);
            assert!(text.contains("DATA") && text.lines().all(|line| line.chars().count() <= 120), "{text}");
        }
    }
}
