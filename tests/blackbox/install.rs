//! `make install`: programs that run from any folder.

use std::path::Path;
use std::process::Command;

#[test]
fn installed_programs_run_from_any_folder_without_a_library_path() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !root.join("target/release/fnet-launch").exists() || !root.join("target/release/fnet-worker").exists() {
        eprintln!(
            "SKIPPED installed_programs_run_from_any_folder_without_a_library_path: target/release has no programs \
             (run `make setup`)"
        );
        return;
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
