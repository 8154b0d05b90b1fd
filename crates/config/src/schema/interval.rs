//! The time between checkpoints, in one of three units.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Time between checkpoints: a number of epochs, or as text `"2000 steps"`, `"30 minutes"`, `"2 epochs"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// Finished epochs.
    Epochs(usize),
    /// Steps of the job.
    Steps(usize),
    /// Minutes since the last checkpoint.
    Minutes(usize),
}

/// The names of the units, in the order of the variants.
const UNITS: [&str; 3] = ["epochs", "steps", "minutes"];

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an interval; expected for example \"2000 steps\" or \"30 minutes\"");
        let (count, unit) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let count = count.parse().ok().filter(|&count| count > 0).ok_or_else(wrong)?;
        match unit.trim() {
            "epoch" | "epochs" => Ok(Interval::Epochs(count)),
            "step" | "steps" => Ok(Interval::Steps(count)),
            "minute" | "minutes" => Ok(Interval::Minutes(count)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = match self {
            Interval::Epochs(count) => (count, UNITS[0]),
            Interval::Steps(count) => (count, UNITS[1]),
            Interval::Minutes(count) => (count, UNITS[2]),
        };
        write!(f, "{count} {unit}")
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Interval::Epochs(count) => serializer.serialize_u64(*count as u64),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Number(usize),
            Text(String),
        }
        match Given::deserialize(deserializer)? {
            Given::Number(count) => Ok(Interval::Epochs(count)),
            Given::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for Interval {
    fn schema_name() -> Cow<'static, str> {
        "Interval".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "units": UNITS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_epochs_or_says_its_unit() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Holder {
            interval: Interval,
        }
        for (text, interval) in [
            ("interval = 3\n", Interval::Epochs(3)),
            ("interval = \"500 steps\"\n", Interval::Steps(500)),
            ("interval = \"1 minutes\"\n", Interval::Minutes(1)),
        ] {
            assert_eq!(toml::from_str::<Holder>(text).unwrap(), Holder { interval });
            assert_eq!(toml::to_string(&Holder { interval }).unwrap(), text);
        }
        assert_eq!("1 epoch".parse(), Ok(Interval::Epochs(1)));
        for wrong in ["", "steps", "0 steps", "-1 steps", "5 hours", "5", "1.5 minutes"] {
            let error = wrong.parse::<Interval>().unwrap_err();
            assert!(error.contains("2000 steps"), "{error}");
        }
    }
}
