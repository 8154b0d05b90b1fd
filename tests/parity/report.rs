//! Comparisons of the parity suite, and the record of their measurements.
//!
//! With `FNET_PARITY_REPORT=FOLDER` in the environment, every comparison appends a line to `FOLDER/rows.tsv`, whether
//! it holds or not. The tab-separated fields are: index of the stage in [`STAGES`], stage, what was compared,
//! reference, `<=` or `>=`, bound, measured value, test. `scripts/parity.sh` writes the table in
//! `docs/tables/parity.md` from them. Lines that differ only in the measured value become one row with the worst value.
//!
//! The file needs only the standard library, so that other integration tests can use it, such as
//! `tests/blackbox/parity_trained.rs`:
//!
//! ```ignore
//! #[path = "../parity/report.rs"]
//! mod report;
//!
//! let end_to_end = report::Comparison::new("end to end", "trained_tiny");
//! end_to_end.at_least("detections matched", matched, 0.995);
//! ```

use std::io::Write;

/// The stages in the order of the table.
pub const STAGES: [&str; 19] = [
    "image transform",
    "backbone",
    "FPN",
    "RPN",
    "proposals",
    "RoIAlign",
    "box head",
    "mask head",
    "final boxes",
    "pasted masks",
    "training features",
    "sampling and targets",
    "losses",
    "gradients",
    "AdamW step",
    "five steps",
    "mixed precision",
    "operators",
    "end to end",
];

/// One stage and one reference: compares measured values with bounds.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    stage: &'a str,
    reference: &'a str,
}

impl<'a> Comparison<'a> {
    /// `stage` is one of [`STAGES`], `reference` is the name of the folder with MMDetection's numbers.
    ///
    /// # Panics
    /// If the stage is not known.
    pub fn new(stage: &'a str, reference: &'a str) -> Self {
        assert!(STAGES.contains(&stage), "{stage:?} is not a stage of the parity suite");
        Self { stage, reference }
    }

    /// Records `measured`, then fails unless it is at most `bound`. `what` ends with the unit, if any.
    ///
    /// # Panics
    /// If it is larger or not a number.
    #[track_caller]
    pub fn at_most(&self, what: &str, measured: f64, bound: f64) {
        self.record(what, "<=", measured, bound);
        assert!(measured <= bound, "{}, {what}: {measured:e} is above the bound {bound:e}", self.stage);
    }

    /// Records `measured`, then fails unless it is at least `bound`.
    ///
    /// # Panics
    /// If it is smaller or not a number.
    #[track_caller]
    pub fn at_least(&self, what: &str, measured: f64, bound: f64) {
        self.record(what, ">=", measured, bound);
        assert!(measured >= bound, "{}, {what}: {measured} is below the bound {bound}", self.stage);
    }

    #[track_caller]
    fn record(&self, what: &str, relation: &str, measured: f64, bound: f64) {
        let Some(folder) = std::env::var_os("FNET_PARITY_REPORT").filter(|folder| !folder.is_empty()) else { return };
        let order = STAGES.iter().position(|&stage| stage == self.stage).unwrap_or(STAGES.len());
        let thread = std::thread::current();
        let test = thread.name().and_then(|name| name.rsplit("::").next()).unwrap_or("?");
        let Self { stage, reference } = self;
        let line = format!("{order}\t{stage}\t{what}\t{reference}\t{relation}\t{bound:e}\t{measured:e}\t{test}\n");
        let path = std::path::Path::new(&folder).join("rows.tsv");
        // A short line is appended atomically, so that several threads and processes can write.
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(written.is_ok(), "cannot write {}: {written:?}", path.display());
    }
}
