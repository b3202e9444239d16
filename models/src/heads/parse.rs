//! Heads and tasks in the words of a command line: `mlp:256`, `unet:32`, `fcos:width=96,levels=2-5`.

use std::fmt;
use std::str::FromStr;

use super::{Classify, Decoder, Detect, HeadSpec, Segment, Task};
use crate::{Error, Result};

impl Task {
    /// Its name: `classify`, `multi-label`, `segment` or `detect`.
    pub fn name(self) -> &'static str {
        match self {
            Task::Classify => "classify",
            Task::MultiLabel => "multi-label",
            Task::Segment => "segment",
            Task::Detect => "detect",
        }
    }

    /// What can be written for the head of this task, for messages and help.
    pub fn head_syntax(self) -> &'static str {
        match self {
            Task::Classify | Task::MultiLabel => "linear, mlp, mlp:WIDTH[,WIDTH…] (e.g. mlp:512,256), mlp:256,norm=no",
            Task::Segment => "fpn, fpn:WIDTH, unet, unet:WIDTH (a U-Net's width is that of its finest level)",
            Task::Detect => "fcos, fcos:width=WIDTH,convs=N,levels=FIRST-LAST (e.g. fcos:width=96,levels=2-5)",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(text: &str) -> Result<Task> {
        let all = [Task::Classify, Task::MultiLabel, Task::Segment, Task::Detect];
        all.into_iter().find(|task| task.name() == text).ok_or_else(|| {
            Error::Arch(format!("there is no task `{text}`; tasks are {}", all.map(Task::name).join(", ")))
        })
    }
}

impl HeadSpec {
    /// The head that `text` describes for `task`; an empty text is the usual one. [`HeadSpec`]'s `Display` writes such
    /// texts.
    ///
    /// # Errors
    /// [`Error::Arch`] saying what can be written, or as [`HeadSpec::validate`].
    pub fn parse(task: Task, text: &str, classes: usize) -> Result<HeadSpec> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let options: Vec<&str> = options.split(',').map(str::trim).filter(|o| !o.is_empty()).collect();
        let spec = match (task, name.trim()) {
            (Task::Classify | Task::MultiLabel, "" | "linear") if options.is_empty() => {
                Some(HeadSpec::Classify(Classify::linear(classes)))
            }
            (Task::Classify | Task::MultiLabel, "mlp") => mlp(&options, classes).map(HeadSpec::Classify),
            (Task::Segment, "" | "fpn") => decoder(Decoder::Fpn, &options, classes).map(HeadSpec::Segment),
            (Task::Segment, "unet") => decoder(Decoder::Unet, &options, classes).map(HeadSpec::Segment),
            (Task::Detect, "" | "fcos") => fcos(&options, classes).map(HeadSpec::Detect),
            _ => None,
        };
        let spec = spec.ok_or_else(|| {
            Error::Arch(format!("`{text}` is no head to {}; write one of: {}", task.name(), task.head_syntax()))
        })?;
        let spec = match spec {
            HeadSpec::Classify(head) => HeadSpec::Classify(Classify { multi_label: task == Task::MultiLabel, ..head }),
            other => other,
        };
        spec.validate()?;
        Ok(spec)
    }
}

fn mlp(options: &[&str], classes: usize) -> Option<Classify> {
    let mut head = Classify { hidden: Vec::new(), ..Classify::linear(classes) };
    for option in options {
        match *option {
            "norm=yes" => head.batch_norm = true,
            "norm=no" => head.batch_norm = false,
            width => head.hidden.push(width.parse().ok()?),
        }
    }
    if head.hidden.is_empty() {
        head.hidden.push(256);
    }
    Some(head)
}

fn decoder(decoder: Decoder, options: &[&str], classes: usize) -> Option<Segment> {
    let usual = Segment::new(decoder, classes);
    match options {
        [] => Some(usual),
        [width] => Some(Segment { width: width.strip_prefix("width=").unwrap_or(width).parse().ok()?, ..usual }),
        _ => None,
    }
}

fn fcos(options: &[&str], classes: usize) -> Option<Detect> {
    let mut head = Detect::new(classes);
    for option in options {
        match option.split_once('=')? {
            ("width", width) => head.width = width.parse().ok()?,
            ("convs", convs) => head.convs = convs.parse().ok()?,
            ("levels", levels) => {
                let (first, last) = levels.split_once('-')?;
                head.levels = [first.parse().ok()?, last.parse().ok()?];
            }
            _ => return None,
        }
    }
    Some(head)
}

impl fmt::Display for HeadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeadSpec::Classify(Classify { hidden, .. }) if hidden.is_empty() => f.write_str("linear"),
            HeadSpec::Classify(Classify { hidden, batch_norm, .. }) => {
                let mut options: Vec<String> = hidden.iter().map(usize::to_string).collect();
                options.extend((!batch_norm).then(|| "norm=no".to_owned()));
                write!(f, "mlp:{}", options.join(","))
            }
            HeadSpec::Segment(Segment { decoder: Decoder::Fpn, width, .. }) => write!(f, "fpn:{width}"),
            HeadSpec::Segment(Segment { decoder: Decoder::Unet, width, .. }) => write!(f, "unet:{width}"),
            HeadSpec::Detect(Detect { width, convs, levels: [first, last], .. }) => {
                write!(f, "fcos:width={width},convs={convs},levels={first}-{last}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (task, text) in [
            (Task::Classify, "linear"),
            (Task::MultiLabel, "mlp:512,256"),
            (Task::Classify, "mlp:64,norm=no"),
            (Task::Segment, "fpn:96"),
            (Task::Segment, "unet:16"),
            (Task::Detect, "fcos:width=64,convs=4,levels=2-5"),
        ] {
            let spec = HeadSpec::parse(task, text, 3).unwrap();
            assert_eq!((spec.to_string().as_str(), spec.task(), spec.classes()), (text, task, 3));
        }
        assert_eq!(HeadSpec::parse(Task::Detect, "", 2).unwrap(), HeadSpec::detect(2));
        assert_eq!(HeadSpec::parse(Task::Segment, "unet", 2).unwrap(), HeadSpec::segment(Decoder::Unet, 2));
        assert_eq!(HeadSpec::parse(Task::Segment, " ", 2).unwrap(), HeadSpec::segment(Decoder::Fpn, 2));
        assert_eq!("multi-label".parse::<Task>().unwrap(), Task::MultiLabel);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (task, text, word) in [
            (Task::Classify, "unet", "mlp"),
            (Task::Classify, "linear:4", "mlp"),
            (Task::Segment, "fpn:1,2", "unet:WIDTH"),
            (Task::Segment, "fpn:wide", "unet:WIDTH"),
            (Task::Detect, "fcos:depth=3", "levels=FIRST-LAST"),
            (Task::Detect, "fcos:levels=6-7", "first level is 6"),
            (Task::Detect, "fcos:levels=4-3", "last level is 3, expected 4 to 7"),
            (Task::Segment, "fpn:0", "width is 0"),
        ] {
            let error = HeadSpec::parse(task, text, 3).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!("count".parse::<Task>().unwrap_err().to_string().contains("segment"));
    }
}
