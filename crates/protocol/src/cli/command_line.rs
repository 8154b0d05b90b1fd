//! A command line as its user gave it, in a canonical form: workers are started with it, and users are shown it to run
//! again.

use std::ffi::{OsStr, OsString};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::rewrite::{RESUME, is_value};

/// A command with the options and positional arguments that were given; defaults are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The command and its subcommands.
    names: Vec<String>,
    /// Each occurrence of an option without its dashes, with its values.
    options: Vec<(String, Vec<OsString>)>,
    positional: Vec<OsString>,
}

impl CommandLine {
    /// The line that `matches` of `program`, a built command, come from.
    pub(super) fn of(program: &Command, matches: &ArgMatches) -> Self {
        let mut line = Self::default();
        let (mut command, mut matches) = (program, matches);
        while let Some((name, inner)) = matches.subcommand()
            && let Some(found) = command.find_subcommand(name)
        {
            line.names.push(name.to_owned());
            (command, matches) = (found, inner);
        }
        for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
            for values in occurrences(argument, matches) {
                match argument.get_long() {
                    Some(option) => line.options.push((option.to_owned(), values)),
                    None => line.positional.extend(values),
                }
            }
        }
        line
    }

    /// The command, as `train`.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The positional arguments.
    pub fn positional_mut(&mut self) -> &mut [OsString] {
        &mut self.positional
    }

    /// This line without an option.
    #[must_use]
    pub fn without(mut self, option: &str) -> Self {
        self.options.retain(|(name, _)| name != option);
        self
    }

    /// This line with one occurrence of an option; an empty value stands for none.
    #[must_use]
    pub fn with(self, option: &str, value: impl Into<OsString>) -> Self {
        let mut line = self.without(option);
        line.options.insert(0, (option.to_owned(), vec![value.into()]));
        line
    }

    /// The words of this line. Values are joined to their options, so that no value is taken for an option.
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = self.names.iter().map(OsString::from).collect();
        for (option, values) in &self.options {
            let mut word = OsString::from(format!("--{option}"));
            match values.as_slice() {
                [] => words.push(word),
                [value] if value.is_empty() => words.push(word),
                [value] => {
                    word.push("=");
                    word.push(value);
                    words.push(word);
                }
                several => {
                    words.push(word);
                    words.extend_from_slice(several);
                }
            }
        }
        // Only --resume may stand without a value right before.
        let open = if words.last().is_some_and(|word| word == RESUME) { RESUME } else { "--set" };
        let is_ambiguous = |word: &OsString| {
            let text = word.to_string_lossy();
            text.starts_with('-') || ["--set", "--eval", open].iter().any(|option| is_value(option, &text))
        };
        if self.positional.iter().any(is_ambiguous) {
            words.push("--".into());
        }
        words.extend(self.positional.iter().cloned());
        words
    }
}

/// The given options of `program` below a heading; values are separate words.
pub(super) fn options_below(heading: &str, program: &Command, matches: &ArgMatches) -> Vec<OsString> {
    let below = program.get_arguments().filter(|argument| argument.get_help_heading() == Some(heading));
    let words = |argument: &Arg| -> Vec<OsString> {
        let name = OsString::from(format!("--{}", argument.get_long().unwrap_or_default()));
        occurrences(argument, matches).into_iter().flat_map(|values| [vec![name.clone()], values].concat()).collect()
    };
    below.flat_map(words).collect()
}

/// The values of each occurrence of an argument; an occurrence of a flag has none.
fn occurrences(argument: &Arg, matches: &ArgMatches) -> Vec<Vec<OsString>> {
    let id = argument.get_id().as_str();
    if matches.value_source(id) != Some(ValueSource::CommandLine) {
        return Vec::new();
    }
    if !argument.get_action().takes_values() {
        return vec![Vec::new()];
    }
    let all = matches.get_raw_occurrences(id).into_iter().flatten();
    all.map(|values| values.map(OsStr::to_owned).collect()).collect()
}
