//! What is wrong in a config.

use std::fmt;

/// An error in a config.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Dotted path of the field.
    pub field: String,
    /// Its value, as TOML.
    pub value: String,
    /// What was expected.
    pub expected: String,
    /// What to do. Empty if `expected` already says it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}; expected {}", self.field, self.value, self.expected)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// Collects the errors that the structs of the schema report.
#[derive(Debug, Default)]
pub(super) struct Problems(pub Vec<Problem>);

impl Problems {
    /// Reports an error in `field` unless `holds`.
    pub fn require(&mut self, holds: bool, field: &str, value: impl fmt::Debug, expected: &str, remedy: &str) {
        if !holds {
            self.0.push(Problem {
                field: field.into(),
                value: format!("{value:?}"),
                expected: expected.into(),
                remedy: remedy.into(),
            });
        }
    }
}
