//! From the numbers that masks store to classes.

use rayon::prelude::*;

use moco_image::read_labels;

use crate::data::MaskMeaning;
use crate::data::pictures::Pictures;
use crate::task::IGNORED;
use crate::{Error, Result};

/// How stored numbers become classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    Index,
    Binary,
    /// Foreground from this number on.
    From(u16),
}

/// More different numbers than this, without names of classes, are taken for shades or instances.
const MANY: usize = 64;

impl Values {
    /// The meaning that was asked for or that the masks show, the names of the classes, and a word about what was found.
    pub fn decide(
        masks: &Pictures,
        meaning: MaskMeaning,
        names: Vec<String>,
    ) -> Result<(Self, Vec<String>, Option<String>)> {
        let two = |values| {
            let names = match names.len() {
                0 => vec!["background".to_owned(), "foreground".to_owned()],
                2 => names.clone(),
                n => {
                    return Err(Error::Invalid(format!(
                        "{n} classes are named, but masks = {meaning} has two: background and foreground"
                    )));
                }
            };
            Ok((values, names, None))
        };
        if names.len() > 255 {
            let n = names.len();
            return Err(Error::Invalid(format!(
                "{n} classes: masks hold classes from 0 to 254, and 255 for ignored pixels"
            )));
        }
        match meaning {
            MaskMeaning::Binary => return two(Self::Binary),
            MaskMeaning::Foreground => return two(Self::From(1)),
            MaskMeaning::Threshold(value) => return two(Self::From(value)),
            MaskMeaning::Index if !names.is_empty() => return Ok((Self::Index, names, None)),
            MaskMeaning::Index | MaskMeaning::Auto => {}
        }
        let seen = numbers(masks)?;
        let most = seen.iter().rev().find(|number| **number != 255).copied().unwrap_or(0);
        let only = |white: u16| seen.iter().all(|&number| number == 0 || number == white);
        if meaning == MaskMeaning::Auto && (only(255) || (only(1) && names.len() <= 2)) {
            let white = seen.last().copied().unwrap_or(0);
            let note =
                format!("masks hold only 0 and {white}: background and foreground (say masks = \"index\" otherwise)");
            return two(Self::Binary).map(|(values, names, _)| (values, names, Some(note)));
        }
        if most > 254 || (names.is_empty() && seen.len() > MANY) {
            return Err(Error::format(
                masks.path(0).parent().unwrap_or(masks.path(0)),
                format!(
                    "masks hold {} different numbers up to {most}: no classes by the look of them. If they number \
                     instances say masks = \"foreground\"; if they are shades say masks = \"threshold:128\"; if they are \
                     classes name them in classes.txt",
                    seen.len()
                ),
            ));
        }
        if names.is_empty() {
            let note = format!("masks hold classes 0 to {most}, without names (classes.txt would name them)");
            let names = (0..=most).map(|number| format!("class {number}")).collect();
            return Ok((Self::Index, names, Some(note)));
        }
        Ok((Self::Index, names, None))
    }

    /// The classes of a mask's numbers, or which number cannot be one.
    pub fn to_classes(self, numbers: &[u16], width: usize, classes: &[String]) -> std::result::Result<Vec<u8>, String> {
        let at = |i: usize| format!("{} at row {}, column {}", numbers[i], i / width, i % width);
        match self {
            Self::From(least) => Ok(numbers.iter().map(|&number| u8::from(number >= least)).collect()),
            Self::Index => {
                let wrong = numbers.iter().position(|&n| usize::from(n) >= classes.len() && n != u16::from(IGNORED));
                match wrong {
                    None => Ok(numbers.iter().map(|&number| number as u8).collect()),
                    Some(i) => Err(format!(
                        "the number {}: expected a class from 0 to {} or 255 for ignored pixels",
                        at(i),
                        classes.len() - 1
                    )),
                }
            }
            Self::Binary => {
                let white = numbers.iter().copied().max().unwrap_or(0);
                let wrong =
                    numbers.iter().position(|&number| number != 0 && (number != white || !matches!(white, 1 | 255)));
                match wrong {
                    None => Ok(numbers.iter().map(|&number| u8::from(number > 0)).collect()),
                    Some(i) => Err(format!(
                        "the number {}: expected only 0 and 255, or 0 and 1; masks with shades need masks = \"threshold:128\"",
                        at(i)
                    )),
                }
            }
        }
    }
}

/// All numbers that occur, sorted.
fn numbers(masks: &Pictures) -> Result<Vec<u16>> {
    let none = || vec![false; 1 << 16];
    let seen = (0..masks.len())
        .into_par_iter()
        .try_fold(none, |mut seen, i| {
            let labels = masks.with_file(i, read_labels)?;
            labels.data().iter().for_each(|&number| seen[usize::from(number)] = true);
            Ok::<_, Error>(seen)
        })
        .try_reduce(none, |mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a |= b);
            Ok(a)
        })?;
    Ok((0..=u16::MAX).filter(|&number| seen[usize::from(number)]).collect())
}
