//! What undoes the workload, kept in the data folder for the next life.
//!
//! Whatever a workload has left behind is undone by the command that belongs to it. After a change of the configuration the new
//! command knows nothing of the old address or container, so the old one is run first.
//!
//! The file is written before the fencer is ready, and only if it changes. It holds the folder to run in and the command. What it does
//! not hold: the environment, which may have secrets, so an earlier command runs with the present one; and the program itself, which
//! may have been replaced under its name. What they alone tell is not undone after a change.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use super::orders::Orders;

/// The file's name inside the data folder.
const FILE: &str = "workload-undo";
/// How it begins. Other versions may follow.
const FORMAT: &[u8] = b"quorate undo 1";

/// Where it is kept for the data folder with this lock.
pub(super) fn path(orders: &Orders) -> PathBuf {
    orders.lock.with_file_name(FILE)
}

/// What an earlier life has kept, if it is not what these orders say. `None`: there is nothing of another configuration.
///
/// # Errors
/// It is there and cannot be read: nobody knows what is to be undone.
pub(super) fn earlier(orders: &Orders) -> Result<Option<Orders>, String> {
    let path = path(orders);
    let not = |why: &dyn std::fmt::Display| {
        let path = path.display();
        format!(
            "{path} does not say what an earlier workload has left: {why}; undo that by hand (an address, a container), then remove the file"
        )
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(not(&e)),
    };
    let (dir, undo) = parse(&bytes).ok_or_else(|| not(&"it is damaged, or of another version"))?;
    let same = dir == orders.dir && undo == orders.undo;
    Ok((!same).then(|| Orders { dir, undo, ..orders.clone() }))
}

/// Keeps what these orders say. Writes nothing if it is kept already.
///
/// # Errors
/// What the system said, with the path.
pub(super) fn keep(orders: &Orders) -> Result<(), String> {
    let path = path(orders);
    let kept = match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
    };
    let wanted = (!orders.undo.is_empty()).then(|| bytes(orders));
    if kept == wanted {
        return Ok(());
    }
    write(&path, wanted.as_deref()).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Replaces the file as a whole, or removes it.
fn write(path: &Path, bytes: Option<&[u8]>) -> io::Result<()> {
    match bytes {
        Some(bytes) => {
            let new = path.with_extension("new");
            // Its arguments are the site's own business.
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, path)?;
        }
        None => std::fs::remove_file(path)?,
    }
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// No argument of a program has a zero byte, so that is what ends each.
fn bytes(orders: &Orders) -> Vec<u8> {
    let dir = orders.dir.as_deref().map(Path::as_os_str).unwrap_or_default();
    let words =
        [OsStr::from_bytes(FORMAT), dir].into_iter().chain(orders.undo.iter().map(OsString::as_os_str));
    words.flat_map(|word| word.as_bytes().iter().copied().chain([0])).collect()
}

/// The folder and the command.
fn parse(bytes: &[u8]) -> Option<(Option<PathBuf>, Vec<OsString>)> {
    let mut words = bytes.strip_suffix(&[0])?.split(|byte| *byte == 0);
    if words.next() != Some(FORMAT) {
        return None;
    }
    let dir = Some(PathBuf::from(OsStr::from_bytes(words.next()?))).filter(|dir| !dir.as_os_str().is_empty());
    let undo: Vec<OsString> = words.map(|word| OsString::from_vec(word.to_vec())).collect();
    (undo.first().is_some_and(|program| !program.is_empty())).then_some((dir, undo))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn orders(folder: &Path, undo: &[&str]) -> Orders {
        let lock = folder.join("fencer.lock");
        let args = ["fencer", "", "m", "1", "1", "1", "1", "0", "0", "1", "", "", "", "0 0 0 0", "0"]
            .map(OsString::from);
        let blank = Orders::from_args(args.into_iter().skip(1)).expect("orders");
        Orders { lock, undo: undo.iter().map(OsString::from).collect(), ..blank }
    }

    #[test]
    fn what_is_kept_is_another_configurations_or_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let [first, second, none] = [&["give", "", "10.0.0.1"][..], &["give", "10.0.0.2"], &[]]
            .map(|undo| orders(folder.path(), undo));
        assert_eq!(earlier(&first), Ok(None));
        keep(&first).expect("keeps");
        assert_eq!(earlier(&first), Ok(None), "nothing has changed");
        assert_eq!(earlier(&second).map(|kept| kept.map(|kept| kept.undo)), Ok(Some(first.undo.clone())));
        assert_eq!(earlier(&none).map(|kept| kept.map(|kept| kept.undo)), Ok(Some(first.undo.clone())));
        let elsewhere = Orders { dir: Some("/srv".into()), ..first.clone() };
        assert_eq!(earlier(&elsewhere).map(|kept| kept.map(|kept| kept.dir)), Ok(Some(None)));
        keep(&none).expect("forgets");
        assert!(!path(&none).exists());
        keep(&elsewhere).expect("keeps");
        assert_eq!(earlier(&first).map(|kept| kept.and_then(|kept| kept.dir)), Ok(Some("/srv".into())));
    }

    #[test]
    fn it_is_written_once_and_for_nobody_else() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let orders = orders(folder.path(), &["give"]);
        keep(&orders).expect("keeps");
        let first = std::fs::metadata(path(&orders)).expect("is there");
        assert_eq!(first.permissions().mode() & 0o777, 0o600);
        keep(&orders).expect("keeps");
        assert_eq!(
            std::fs::metadata(path(&orders)).expect("is there").ino(),
            first.ino(),
            "it is the same file"
        );
    }

    #[test]
    fn what_cannot_be_read_is_no_clean_slate() {
        let folder = tempfile::tempdir().expect("a folder");
        let orders = orders(folder.path(), &["give"]);
        for damaged in
            [&b""[..], b"\0", b"quorate undo 2\0\0give\0", b"quorate undo 1\0\0give", b"quorate undo 1\0\0"]
        {
            std::fs::write(path(&orders), damaged).expect("writes");
            let why = earlier(&orders).expect_err("it is damaged");
            assert!(why.contains("workload-undo") && why.contains("remove the file"), "{why}");
        }
    }

    proptest! {
        #[test]
        fn any_command_survives(
            dir in proptest::option::of("/[^\0]{0,20}"),
            undo in proptest::collection::vec(proptest::collection::vec(1_u8.., 0..9), 0..4),
        ) {
            let undo: Vec<OsString> =
                [b"give".to_vec()].into_iter().chain(undo).map(OsString::from_vec).collect();
            let orders = Orders { dir: dir.map(PathBuf::from), undo, ..orders(Path::new("/data"), &[]) };
            prop_assert_eq!(parse(&bytes(&orders)), Some((orders.dir, orders.undo)));
        }
    }
}
