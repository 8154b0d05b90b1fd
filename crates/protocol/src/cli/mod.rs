//! The command line of both programs.
//!
//! `fnet-launch [OPTIONS] COMMAND ...` runs `fnet-worker COMMAND ...` once per rank, so both parse the same commands. The
//! launcher passes on the words that it was given, as a [`CommandLine`].

mod benchmark;
mod bind;
mod command_line;
mod commands;
mod data;
mod options;
mod results;
mod rewrite;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::hints;
use crate::work_dir::is_pytorch_file;

pub use benchmark::{
    Benchmark, BenchmarkComm, BenchmarkCommand, BenchmarkData, BenchmarkInfer, BenchmarkLaunch, BenchmarkTrain, WARM_UP,
};
pub use bind::{Bind, CpuList};
pub use command_line::CommandLine;
pub use commands::{
    Completions, Doctor, Export, Flops, Man, Metric, Predict, PredictFormat, PrintConfig, Resume, Shape, SplitName,
    Status, Synth, SynthLayout, Test, Train,
};
pub use data::{Browse, CheckData, ConvertConfig};
pub use options::{ColorChoice, Device, Gpus, LaunchOptions, NodeCount};
pub use results::{Evaluate, Report};

/// `fnet-launch`: starts one worker per GPU (or `--nproc` workers on the CPU) and supervises them.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "fnet-launch",
    version,
    about = "Trains and evaluates Mask R-CNN with FasterNet backbones, one worker per GPU",
    after_help = "Examples:\n  \
        fnet-launch --gpus 8 train configs/mask_rcnn_fasternet_s_fpn_1x_coco.toml\n  \
        fnet-launch --device cpu --nproc 2 train cfg.toml\n  \
        fnet-launch --gpus 8 test work_dirs/mask_rcnn_fasternet_s_fpn_1x_coco/latest.ckpt\n\n\
        Exit codes: 0 done, 1 a bug, 2 command line or config, 3 data or checkpoint, 4 a worker was lost, 5 a worker hung,\n\
        6 the machine cannot run it, 75 stopped on request (run again with --resume), 130 stopped by Ctrl-C."
)]
pub struct Launch {
    /// Where and how to run.
    #[command(flatten)]
    pub options: LaunchOptions,
    /// What to run.
    #[command(subcommand)]
    pub command: LaunchCommand,
    /// The words of the options that say where to run.
    #[arg(skip)]
    pub option_words: Vec<OsString>,
    /// The command in words.
    #[arg(skip)]
    pub line: CommandLine,
}

/// The commands of `fnet-launch`.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum LaunchCommand {
    /// Commands that workers run.
    #[command(flatten)]
    Worker(WorkerCommand),
    /// Make a synthetic COCO data set: textured scenes with boxes, masks, crowds and holes.
    Synth(Synth),
    /// Show what a running or ended training does.
    Status(Status),
    /// Check this machine and suggest fixes.
    Doctor(Doctor),
    /// Print a shell completion script for fnet-launch.
    Completions(Completions),
    /// Write the manual pages of fnet-launch and its commands.
    Man(Man),
}

/// `fnet-worker`: one rank of a job; started by `fnet-launch`, torchrun, mpirun or srun.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "fnet-worker",
    version,
    about = "One rank of an fnet job",
    long_about = "One rank of an fnet job. Its rank comes from RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and \
                  MASTER_PORT; without them it is a job of one.",
    after_help = "Example: torchrun --no-python --nproc-per-node 2 fnet-worker train cfg.toml"
)]
pub struct Worker {
    /// What to run.
    #[command(subcommand)]
    pub command: WorkerCommand,
}

/// The commands of `fnet-worker`.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum WorkerCommand {
    /// Train a model, and evaluate it after each epoch.
    Train(Train),
    /// Evaluate a checkpoint.
    Test(Test),
    /// Evaluate results files of any tool, and compare two.
    Evaluate(Evaluate),
    /// Write a page about runs: curves, metrics, errors, images, times.
    Report(Report),
    /// Detect objects in images and draw them.
    Predict(Predict),
    /// Count operations and parameters of a model.
    Flops(Flops),
    /// Measure speed.
    Benchmark(Benchmark),
    /// Check all annotations and images for problems.
    CheckData(CheckData),
    /// Print the resolved config as TOML, with the origin of each value.
    PrintConfig(PrintConfig),
    /// Write a checkpoint's weights for PyTorch and MMDetection, or as safetensors.
    Export(Export),
    /// Visualize training images after augmentation, with their boxes, masks and class names.
    Browse(Browse),
    /// Convert a Python config of MMDetection to TOML.
    ConvertConfig(ConvertConfig),
}

/// Where the help of a command leads.
const SHARED_OPTIONS: &str =
    "Where to run (--gpus, --device, --nproc, --nnodes, --dry-run, ...) and how to supervise:\n  fnet-launch --help";

/// Whether a command is among the words, so that its help is asked for.
fn names_command(program: &clap::Command, words: &[OsString]) -> bool {
    words
        .iter()
        .skip(1)
        .any(|word| program.get_subcommands().any(|command| command.get_name() != "help" && word == command.get_name()))
}

impl Launch {
    /// Parses the command line, the program's name first.
    /// Errors: what is wrong, as clap reports it; `--help` and `--version` come as errors too (see
    /// [`clap::Error::exit`]).
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let arguments = rewrite::one_value_each(arguments);
        let mut program = Self::command();
        let matches = match program.try_get_matches_from_mut(&arguments) {
            Err(error) if error.kind() == ErrorKind::DisplayHelp && names_command(&program, &arguments) => {
                Self::command_with_short_help().try_get_matches_from(&arguments)
            }
            matches => matches,
        };
        let matches = matches.map_err(hinted)?;
        let mut launch = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut program))?;
        launch.option_words = command_line::options_below(options::WHERE, &program, &matches);
        launch.option_words.retain(|word| word != "--dry-run");
        launch.line = CommandLine::of(&program, &matches);
        Ok(launch)
    }

    /// The commands without the options that all of them share, which the program's own help lists.
    pub fn command_with_short_help() -> clap::Command {
        Self::command()
            .mut_args(|option| if option.is_global_set() { option.hide(true) } else { option })
            .mut_subcommands(|command| {
                let help = command.get_after_help().map(ToString::to_string);
                command.after_help(
                    [help.as_deref(), Some(SHARED_OPTIONS)].into_iter().flatten().collect::<Vec<_>>().join("\n\n"),
                )
            })
    }

    /// A line for users to run: this program with the same options about where to run, and a command.
    pub fn line_with(&self, command: &CommandLine) -> Vec<OsString> {
        [vec!["fnet-launch".into()], self.option_words.clone(), command.words()].concat()
    }
}

impl Worker {
    /// Parses the command line, the program's name first.
    /// Errors: what is wrong, as clap reports it; `--help` and `--version` come as errors too (see
    /// [`clap::Error::exit`]).
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(rewrite::one_value_each(arguments)).map_err(hinted)
    }
}

/// Names the right option where another program's is unknown, in place of the most similar one.
fn hinted(mut error: clap::Error) -> clap::Error {
    let hint = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if error.kind() == ErrorKind::UnknownArgument => hints::of_option(option),
        _ => None,
    };
    if let Some(hint) = hint {
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.text().into()]));
    }
    error
}

impl WorkerCommand {
    /// Whether a config is missing: a PyTorch file does not contain its model's config, and none is given.
    pub fn lacks_config(&self) -> bool {
        let (checkpoint, config) = match self {
            WorkerCommand::Test(test) => (&test.checkpoint, &test.config),
            WorkerCommand::Predict(predict) => (&predict.checkpoint, &predict.config),
            _ => return false,
        };
        config.is_none() && is_pytorch_file(checkpoint)
    }
}

#[cfg(test)]
mod tests;
