//! The contract between `fnet-launch` and `fnet-worker`: the command line ([`cli`]), the environment that a worker is
//! started with ([`mod@env`]), the messages on the control channel ([`message`]), a worker's end of that channel
//! ([`client`]) and its shared status ([`status`]), the outputs that both must find ([`work_dir`]), and the exit codes
//! ([`exit`]); and, for both, output that never blocks ([`outlet`]), where a job listens ([`listen`]) and what was measured between
//! its nodes ([`links`]).

// Doc comments of the command line are its help texts, where <X> stands for a value.
#![allow(rustdoc::invalid_html_tags)]

pub mod activity;
pub mod capability;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod clock;
pub mod contain;
pub mod env;
pub mod estimate;
pub mod exit;
pub mod fault;
pub mod file_kind;
pub mod generation;
pub mod hints;
pub mod links;
pub mod listen;
pub mod message;
pub mod outlet;
pub mod spread;
pub mod stack;
pub mod status;
pub mod stop;
pub mod text;
pub mod work_dir;
