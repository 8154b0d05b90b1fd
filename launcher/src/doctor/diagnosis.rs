//! What `doctor` finds.

use serde::Serialize;

/// How well one part of the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rating {
    Good,
    /// Some jobs will fail or be slow.
    Doubtful,
    /// No job will run.
    Bad,
}

/// The diagnosis of one part of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    pub what: &'static str,
    #[serde(rename = "verdict")]
    pub rating: Rating,
    pub found: String,
    /// What to do if something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Diagnosis {
    pub fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, rating: Rating::Good, found: found.into(), remedy: None }
    }

    pub fn doubtful(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, rating: Rating::Doubtful, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub fn bad(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { rating: Rating::Bad, ..Self::doubtful(what, found, remedy) }
    }

    /// Good, or doubtful with a remedy.
    pub fn good_if(good: bool, what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        if good { Self::good(what, found) } else { Self::doubtful(what, found, remedy) }
    }
}
