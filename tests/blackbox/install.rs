//! `make install`: programs that run from any folder.

use std::path::Path;
use std::process::Command;

#[test]
fn installed_programs_run_from_any_folder_without_a_library_path() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !root.join("target/release/fnet-launch").exists() || !root.join("target/release/fnet-worker").exists() {
        return crate::support::skip("target/release has no programs (run `make setup`)");
    }
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("a folder with spaces");
    let installed = Command::new(root.join("scripts/install.sh")).arg(&prefix).output().unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    for program in ["fnet-launch", "fnet-worker"] {
        let output = Command::new(prefix.join("bin").join(program))
            .arg("--version")
            .current_dir("/")
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        let wanted = format!("{program} {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), wanted);
    }
    assert!(prefix.join("share/fnet/configs/_base_").is_dir());
    // Loaded on demand, on GPUs.
    assert!(prefix.join("lib/fnet/libfnet_python_stand_in.so").is_file());
}

#[test]
fn an_unpacked_package_says_that_libtorch_is_missing_and_runs_with_the_one_it_is_given() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let packed = Command::new(root.join("scripts/package.sh")).arg(folder.path()).output().unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let name = format!("fnet-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
    let unpacked = folder.path().join("somewhere else");
    std::fs::create_dir(&unpacked).unwrap();
    let archive = folder.path().join(format!("{name}.tar.gz"));
    assert!(Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(&unpacked).status().unwrap().success());
    let run = |line: &[&str]| {
        let mut command = Command::new(unpacked.join(&name).join("bin/fnet-launch"));
        command.args(line).current_dir(folder.path());
        for name in ["LD_LIBRARY_PATH", "FNET_LIBTORCH", "FNET_WORKER"] {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let config = unpacked.join(&name).join("share/fnet/configs/demo.toml").display().to_string();
    for line in [&["flops", &config][..], &["--device", "cpu", "train", &config]] {
        let (code, text) = run(line);
        assert!(code == Some(6) && text.contains("libtorch_cpu.so") && text.contains("--libtorch"), "{text}");
    }
    let libtorch = root.join(".libtorch").display().to_string();
    let (code, text) = run(&["--libtorch", &libtorch, "flops", &config]);
    assert!(code == Some(0) && text.contains("GFLOPs"), "{text}");
    let (code, text) = run(&["--libtorch", "no such folder", "flops", &config]);
    assert!(code == Some(2) && text.contains("libtorch_cpu.so"), "{text}");
}

#[test]
fn a_missing_prefix_and_a_folder_that_cannot_be_created_are_errors_with_a_remedy() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install.sh");
    let missing = Command::new(&script).output().unwrap();
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && text.contains("PREFIX="), "{text}");

    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = Command::new(&script).arg(file.path().join("below")).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("cannot create"), "{text}");
}
