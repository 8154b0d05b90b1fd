//! Measures time and memory of opening an annotation file, as a rank does.
//!
//! `cargo bench --bench open_annotations -- FILE [RANKS]` prints one JSON line. Memory is the maximum growth of the process
//! (its peak resident size minus the size before). With several ranks, which open the file at the same time, it is the sum.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use fnet_config as config;
use fnet_data::{Dataset, Split};

/// Makes a child process measure itself.
const CHILD: &str = "--child";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let result = match arguments.as_slice() {
        [file] => ranks(file, 1),
        [flag, file] if flag == CHILD => open(file),
        [file, number] => {
            number.parse().map_err(|_| format!("{number} is not a number of ranks")).and_then(|n| ranks(file, n))
        }
        _ => Err("expected an annotation file and, optionally, a number of ranks".into()),
    };
    match result {
        Ok(line) => println!("{line}"),
        Err(message) => {
            eprintln!("error: {message}");
            std::process::exit(2);
        }
    }
}

/// Opens the file in `number` processes at once.
fn ranks(file: &str, number: usize) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut children = Vec::new();
    for _ in 0..number {
        let child = Command::new(&program).args([CHILD, file]).stdout(Stdio::piped()).spawn();
        children.push(child.map_err(|error| error.to_string())?);
    }
    let (mut seconds, mut peak, mut kept, mut counts) = (0.0_f64, 0.0, 0.0, String::new());
    for mut child in children {
        let mut text = String::new();
        child.stdout.take().ok_or("no output")?.read_to_string(&mut text).map_err(|error| error.to_string())?;
        child.wait().map_err(|error| error.to_string())?;
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let &[took, most, rest, images, objects] = numbers.as_slice() else { return Err("a rank failed".into()) };
        seconds = seconds.max(took);
        peak += most;
        kept += rest;
        counts = format!("\"images\": {images}, \"objects\": {objects}");
    }
    Ok(format!(
        "{{\"ranks\": {number}, \"seconds\": {seconds:.3}, \"peak_mb\": {peak:.1}, \"kept_mb\": {kept:.1}, {counts}}}"
    ))
}

/// Opens the file in this process: seconds, peak and remaining growth in MB, images, objects.
fn open(file: &str) -> Result<String, String> {
    let path = std::path::absolute(file).map_err(|error| error.to_string())?;
    let mut config = config::Data { root: "/".into(), ..config::Data::default() };
    config.train[0].ann_file = path.display().to_string();
    config.train[0].img_prefix = path.parent().unwrap_or(Path::new("/")).display().to_string();
    let before = memory("VmRSS:")?;
    let start = Instant::now();
    let dataset = Dataset::open(&config, Split::Train).map_err(|error| error.to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    let (peak, now) = (memory("VmHWM:")? - before, memory("VmRSS:")? - before);
    Ok(format!("{seconds} {peak} {now} {} {}", dataset.len(), dataset.object_count()))
}

/// A line of /proc/self/status, in MB.
fn memory(name: &str) -> Result<f64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().map_err(|_| "not a number")?;
    Ok(kilobytes / 1024.0)
}
