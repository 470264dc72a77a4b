//! Whether the workload's program is there, before it is needed.
//!
//! It looks as the system will when the program is started (execvp(3)): a name without a slash is searched for in `PATH`, any
//! other counts from the working folder. What it finds may still fail to start, and may be gone by then.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

/// Where `program` is, for a workload with this folder and these variables beside the sidecar's own.
///
/// # Errors
/// Why it could not be started, and what to do.
pub fn find_program(
    program: &str,
    working_dir: Option<&Path>,
    env: &BTreeMap<String, String>,
) -> Result<PathBuf, String> {
    if let Some(folder) = working_dir
        && !folder.is_dir()
    {
        return Err(format!("workload.working_dir: {} is no folder; make it", folder.display()));
    }
    let place = |path: PathBuf| working_dir.map_or_else(|| path.clone(), |folder| folder.join(&path));
    if program.contains('/') {
        let path = place(program.into());
        return may_run(&path).map(|()| path);
    }
    let inherited = || std::env::var_os("PATH");
    let path = env.get("PATH").map(Into::into).or_else(inherited).unwrap_or_else(|| "/bin:/usr/bin".into());
    let found = std::env::split_paths(&path)
        .map(|folder| place(folder.join(program)))
        .find(|path| may_run(path).is_ok());
    found.ok_or_else(|| {
        format!("{program} is in no folder of PATH ({}); write its whole path", path.to_string_lossy())
    })
}

fn may_run(path: &Path) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    if !found.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    access(path, Access::EXEC_OK).map_err(|_| {
        format!("{} may not be executed by this user; chmod +x, or another user", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_as_it_will_be_when_it_is_started() {
        let none = BTreeMap::new();
        let find = |program: &str, folder: Option<&Path>| find_program(program, folder, &none);
        assert_eq!(find("/bin/sh", None), Ok("/bin/sh".into()));
        assert!(find("sh", None).is_ok_and(|path| path.ends_with("sh")));
        assert!(find("no-such-program-here", None).is_err_and(|why| why.contains("PATH")));
        assert!(find("/etc/passwd", None).is_err_and(|why| why.contains("chmod")));
        assert!(find("/bin", None).is_err_and(|why| why.contains("not a file")));
        let folder = tempfile::tempdir().expect("a folder");
        assert!(find("./app", Some(folder.path())).is_err());
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("app")).expect("links");
        assert_eq!(find("./app", Some(folder.path())), Ok(folder.path().join("./app")));
        assert!(
            find("/bin/sh", Some(Path::new("/no/such/folder"))).is_err_and(|why| why.contains("working_dir"))
        );
        let env = BTreeMap::from([("PATH".to_owned(), folder.path().display().to_string())]);
        assert_eq!(find_program("app", None, &env), Ok(folder.path().join("app")));
    }
}
