//! Options as words: the same ones in TOML, on a command line and through the C ABI.

use std::fmt;
use std::str::FromStr;

use moco_models::heads::Fit;
use toml::{Table, Value};

use super::options::{BatchNorm, ClassWeights, LossOptions, OptimiserKind, Options};
use crate::augment::AugmentOptions;
use crate::loss::SegmentationLoss;
use crate::{Error, Result};

impl Options {
    /// The same with the values of a TOML text, whose keys are the fields: `epochs = 20`, `[optimiser]`, `lr = 0.01`. Where
    /// a section has a usual choice, its word will do: `augment = "light"` (a preset of [`AugmentOptions`]),
    /// `loss = "ce+dice"` ([`SegmentationLoss`]), `optimiser = "sgd"`, `fit = "tiles:64"`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the line of a text that is not TOML, or the key that does not exist or fit.
    pub fn with_toml(&self, text: &str) -> Result<Options> {
        let changes: Table =
            text.parse().map_err(|e: toml::de::Error| Error::Invalid(format!("the options are not TOML: {e}")))?;
        self.with(changes)
    }

    /// The same with one value changed by its dotted key, e.g. `optimiser.lr` and `0.01`. A value that is not TOML is a word.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the key that does not exist or whose value does not fit.
    pub fn with_word(&self, key: &str, value: &str) -> Result<Options> {
        let value = match value.trim() {
            // A word that means itself, however TOML would read it.
            "" => return Err(Error::option(key, "is given no value")),
            text => match format!("value = {text}").parse::<Table>() {
                Ok(mut table) if table.len() == 1 => table.remove("value").expect("the only key"),
                _ => Value::String(text.to_owned()),
            },
        };
        let mut changes = value;
        for part in key.rsplit('.') {
            changes = Value::Table(Table::from_iter([(part.to_owned(), changes)]));
        }
        let Value::Table(changes) = changes else { unreachable!("a key has one part at least") };
        self.with(changes).map_err(|e| Error::Invalid(format!("{key}: {e}")))
    }

    /// As [`Options::with_toml`], from a table.
    ///
    /// # Errors
    /// As [`Options::with_toml`].
    pub fn with(&self, mut changes: Table) -> Result<Options> {
        for (key, value) in &mut changes {
            if let Value::String(word) = value
                && let Some(section) = self.section(key, word)?
            {
                *value = section;
            }
        }
        let mut table = Table::try_from(self).map_err(|e| Error::Invalid(format!("options: {e}")))?;
        merge(&mut table, changes);
        // Through text: its errors name the key.
        let text = toml::to_string(&table).map_err(|e| Error::Invalid(format!("options: {e}")))?;
        toml::from_str(&text).map_err(|e| Error::Invalid(format!("options: {}", e.to_string().trim_end())))
    }

    /// The section that a word stands for.
    fn section(&self, key: &str, word: &str) -> Result<Option<Value>> {
        let table = |value: std::result::Result<Value, toml::ser::Error>| {
            value.map(Some).map_err(|e| Error::option(key, e.to_string()))
        };
        match key {
            "augment" => table(Value::try_from(AugmentOptions::preset(word)?)),
            "fit" => table(Value::try_from(fit(word).map_err(|reason| Error::option("fit", reason))?)),
            "optimiser" => {
                let kind = word.parse::<OptimiserKind>().map_err(|reason| Error::option("optimiser", reason))?;
                Ok(Some(Value::Table(Table::from_iter([("kind".to_owned(), Value::String(kind.to_string()))]))))
            }
            "loss" => match &self.loss {
                LossOptions::Segment(_) => {
                    let loss = LossOptions::Segment(word.parse::<SegmentationLoss>()?);
                    table(Value::try_from(loss))
                }
                LossOptions::Classify { .. } if word == "ce" => Ok(Some(Value::Table(Table::new()))),
                LossOptions::MultiLabel {} if word == "bce" => Ok(Some(Value::Table(Table::new()))),
                LossOptions::Detect(_) if word == "fcos" => Ok(Some(Value::Table(Table::new()))),
                _ => Err(Error::option(
                    "loss",
                    format!(
                        "`{word}`: classification has `ce`, multi-label `bce`, detection `fcos`, segmentation sums such as `ce+dice`"
                    ),
                )),
            },
            _ => Ok(None),
        }
    }
}

/// Values of `changes` into `table`; sections are merged. A section that is given by its kind is replaced as a whole.
fn merge(table: &mut Table, changes: Table) {
    for (key, value) in changes {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if key != "fit" => merge(old, new),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// `stretch`, `letterbox`, `cover:256`, `tiles:64`.
pub(super) fn fit(word: &str) -> std::result::Result<Fit, String> {
    let number = |prefix: &str| word.strip_prefix(prefix).and_then(|n| n.parse().ok());
    match word {
        "stretch" => Ok(Fit::Stretch),
        "letterbox" => Ok(Fit::Letterbox),
        _ => None
            .or_else(|| number("tiles:").map(|overlap| Fit::Tiles { overlap }))
            .or_else(|| number("cover:").map(|shorter| Fit::Cover { shorter }))
            .ok_or_else(|| {
                format!(
                    "`{word}`: expected `stretch`, `letterbox`, `cover:PIXELS` of the shorter side, or `tiles:PIXELS` that \
                     windows share"
                )
            }),
    }
}

impl FromStr for OptimiserKind {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<OptimiserKind, String> {
        match word {
            "sgd" => Ok(OptimiserKind::Sgd),
            "adamw" => Ok(OptimiserKind::AdamW),
            _ => Err(format!("`{word}`: expected `sgd` or `adamw`")),
        }
    }
}

impl fmt::Display for OptimiserKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OptimiserKind::Sgd => "sgd",
            OptimiserKind::AdamW => "adamw",
        })
    }
}

impl FromStr for BatchNorm {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<BatchNorm, String> {
        match word {
            "frozen" => Ok(BatchNorm::Frozen),
            "trained" => Ok(BatchNorm::Trained),
            _ => Err(format!("`{word}`: expected `frozen` or `trained`")),
        }
    }
}

impl FromStr for ClassWeights {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<ClassWeights, String> {
        match word {
            "none" => Ok(ClassWeights::None),
            "balanced" => Ok(ClassWeights::Balanced),
            _ => word
                .split(',')
                .map(|w| w.trim().parse().ok())
                .collect::<Option<Vec<f32>>>()
                .map(ClassWeights::Given)
                .ok_or_else(|| format!("`{word}`: expected `none`, `balanced`, or a number for each class")),
        }
    }
}

/// A word or a list, as TOML and JSON hold it.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum WordOrList {
    Word(String),
    List(Vec<f32>),
}

impl From<ClassWeights> for WordOrList {
    fn from(weights: ClassWeights) -> WordOrList {
        match weights {
            ClassWeights::None => WordOrList::Word("none".into()),
            ClassWeights::Balanced => WordOrList::Word("balanced".into()),
            ClassWeights::Given(list) => WordOrList::List(list),
        }
    }
}

impl TryFrom<WordOrList> for ClassWeights {
    type Error = String;

    fn try_from(value: WordOrList) -> std::result::Result<ClassWeights, String> {
        match value {
            WordOrList::Word(word) => word.parse(),
            WordOrList::List(list) => Ok(ClassWeights::Given(list)),
        }
    }
}
