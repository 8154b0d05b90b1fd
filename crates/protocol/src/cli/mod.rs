//! The command line of both programs.
//!
//! `fnet-launch [WHERE] COMMAND ...` runs `fnet-worker COMMAND ...` once per rank, so both parse the same commands;
//! [`WorkerCommand::to_args`] is the inverse of parsing.

mod benchmark;
mod bind;
mod commands;
mod data;
mod place;
mod rewrite;
mod to_args;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::work_dir::is_pytorch_file;

pub use benchmark::{
    Benchmark, BenchmarkComm, BenchmarkCommand, BenchmarkData, BenchmarkInfer, BenchmarkLaunch, BenchmarkTrain, WARM_UP,
};
pub use bind::{Bind, CpuList};
pub use commands::{
    Completions, Doctor, Export, Flops, Metric, Predict, PrintConfig, Resume, Shape, ShellName, Synth, SynthLayout,
    Test, Train,
};
pub use data::{Browse, CheckData, SplitName};
pub use place::{ColorChoice, Device, Gpus, Place};

/// `fnet-launch`: starts one worker per GPU (or per `--nproc` on the CPU) and looks after them.
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
        6 the machine is not able, 75 stopped on request (run again with --resume), 130 stopped by Ctrl-C."
)]
pub struct Launch {
    /// Where to run.
    #[command(flatten)]
    pub place: Place,
    /// What to run.
    #[command(subcommand)]
    pub command: LaunchCommand,
}

/// The commands of `fnet-launch`.
#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum LaunchCommand {
    /// Commands that workers run.
    #[command(flatten)]
    Worker(WorkerCommand),
    /// Make a synthetic COCO data set: textured scenes with boxes, masks, crowds and holes.
    Synth(Synth),
    /// Say whether this machine is able to run jobs, what is wrong, and how to mend it.
    Doctor(Doctor),
    /// Print a script that completes fnet-launch's command line in a shell.
    Completions(Completions),
}

/// `fnet-worker`: one rank of a job; started by `fnet-launch`, torchrun, mpirun or srun.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "fnet-worker",
    version,
    about = "One rank of an fnet job",
    long_about = "One rank of an fnet job. Its place comes from RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and \
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
#[command(disable_help_subcommand = true)]
pub enum WorkerCommand {
    /// Train a model, and evaluate it after each epoch.
    Train(Train),
    /// Evaluate a checkpoint.
    Test(Test),
    /// Find objects in pictures, and paint them.
    Predict(Predict),
    /// Count operations and parameters of a model.
    Flops(Flops),
    /// Measure speed.
    Benchmark(Benchmark),
    /// Read all annotations and pictures, and say what is wrong with them.
    CheckData(CheckData),
    /// Print the resolved config as TOML, with where each value came from.
    PrintConfig(PrintConfig),
    /// Write a checkpoint's weights for PyTorch and MMDetection, or as safetensors.
    Export(Export),
    /// Paint training pictures as the model gets them, with their boxes, masks and names.
    Browse(Browse),
}

impl Launch {
    /// Parses the command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong, as clap words it; `--help` and `--version` come as errors too (see [`clap::Error::exit`]).
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(rewrite::one_value_each(arguments))
    }
}

impl Worker {
    /// Parses the command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong, as clap words it; `--help` and `--version` come as errors too (see [`clap::Error::exit`]).
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(rewrite::one_value_each(arguments))
    }
}

impl WorkerCommand {
    /// This command with a `--config` to fill in, if its checkpoint is a PyTorch file, which does not say what model it
    /// is of, and no config is given.
    pub fn with_missing_config(&self) -> Option<Self> {
        let mut command = self.clone();
        let (checkpoint, config) = match &mut command {
            WorkerCommand::Test(test) => (&test.checkpoint, &mut test.config),
            WorkerCommand::Predict(predict) => (&predict.checkpoint, &mut predict.config),
            _ => return None,
        };
        if config.is_some() || !is_pytorch_file(checkpoint) {
            return None;
        }
        *config = Some("CONFIG.toml".into());
        Some(command)
    }
}

#[cfg(test)]
mod tests;
