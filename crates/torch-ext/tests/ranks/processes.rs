//! Starts one process per rank, as fnet-launch does: this test program again, for one test.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use fnet_protocol::env;

/// Set in the processes of ranks.
pub const IS_RANK: &str = "FNET_TEST_IS_RANK";

/// `Some` in a rank of this test. In the test itself, starts it again for each of so many ranks, waits for them, and is `None`.
macro_rules! rank {
    ($($world:literal),+) => {{
        fn here() {}
        one_rank(&here, &[$($world),+], None)
    }};
    ($world:literal of which $lost:literal is lost) => {{
        fn here() {}
        one_rank(&here, &[$world], Some($lost))
    }};
}
pub(crate) use rank;

/// What [`rank!`] says and does; `_here` is a function in the test.
pub fn one_rank<F>(_here: &F, worlds: &[usize], lost: Option<usize>) -> Option<()> {
    if std::env::var_os(IS_RANK).is_some() {
        return Some(());
    }
    let (_, path) = std::any::type_name::<F>().split_once("::").unwrap();
    for &world in worlds {
        let mut children = start(path.trim_end_matches("::here"), world);
        if let Some(lost) = lost {
            children.remove(lost).wait().unwrap();
        }
        finish(children);
    }
    None
}

/// A rank that runs `test`, and meets the others at `port` of this machine.
pub fn rank_command(test: &str, rank: usize, world: usize, port: u16) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    for (name, value) in [
        (IS_RANK, String::new()),
        (env::RANK, rank.to_string()),
        (env::LOCAL_RANK, rank.to_string()),
        (env::WORLD_SIZE, world.to_string()),
        (env::LOCAL_WORLD_SIZE, world.to_string()),
        (env::MASTER_ADDR, "127.0.0.1".into()),
        (env::MASTER_PORT, port.to_string()),
        (env::DEVICE, "cpu".into()),
        (env::OMP_NUM_THREADS, "1".into()),
    ] {
        command.env(name, value);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// One process per rank; rank 0 inherits the store's listening socket.
fn start(test: &str, world: usize) -> Vec<Child> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fd = listener.as_raw_fd();
    (0..world)
        .map(|rank| {
            let mut command = rank_command(test, rank, world, port);
            if rank == 0 {
                command.env(env::STORE_FD, fd.to_string());
                // SAFETY: fcntl is async-signal-safe; the socket is open in the child at this point.
                unsafe {
                    command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                        -1 => Err(std::io::Error::last_os_error()),
                        _ => Ok(()),
                    });
                }
            }
            command.spawn().unwrap()
        })
        .collect()
}

/// Waits for the ranks; one that failed is a panic with all that it wrote.
pub fn finish(children: Vec<Child>) {
    for (rank, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let (stdout, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // A name that matches no test would run none and succeed.
        assert!(
            output.status.success() && stdout.contains("1 passed"),
            "rank {rank}, {}: {stdout}{errors}",
            output.status
        );
    }
}
