//! What the workload of a device is, in a few letters, so that devices of one site can be compared.
//!
//! It covers the program's file (or the container's image), the command and its environment as configured, the user, whatever files
//! the site names besides, such as a model, and what of the configuration all devices share. It says nothing about whether the workload is a good one, and is no protection
//! against whoever wants to deceive.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use ring::digest::{Context, SHA256};

use super::{Settings, fencer::SELF, find_program};

/// So many hexadecimal digits tell workloads apart.
const DIGITS: usize = 6;

/// What a fingerprint covers.
#[derive(Debug, Clone, Default)]
pub struct Covered {
    /// How the workload is started and stopped.
    pub settings: Settings,
    /// The files that belong to it besides.
    pub files: Vec<PathBuf>,
    /// What of the configuration all devices share, in words that are the same for the same.
    pub configuration: String,
}

impl Covered {
    /// Reads everything; `image` is the container's, if it is one. Blocks for as long as that takes.
    ///
    /// # Errors
    /// The file that cannot be read, and why.
    pub fn fingerprint(&self, image: Option<&str>) -> Result<String, String> {
        let Covered { settings, configuration, .. } = self;
        let mut hash = Context::new(&SHA256);
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for word in settings.command.iter().chain(&settings.undo) {
            part(word.as_bytes());
        }
        for (name, value) in &settings.env {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(settings.user.map(|user| user.to_string()).unwrap_or_default().as_bytes());
        part(image.unwrap_or_default().as_bytes());
        part(configuration.as_bytes());
        for path in self.paths()? {
            part(&of_file(&path).map_err(|e| format!("{}: {e}", path.display()))?);
        }
        let digest = hash.finish();
        Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..DIGITS].to_owned())
    }

    /// What changes when one of the files does, without reading them: their sizes, times and numbers.
    ///
    /// # Errors
    /// The file that cannot be looked at, and why.
    pub fn trace(&self) -> Result<Vec<(u64, i64, u64)>, String> {
        let look = |path: PathBuf| {
            let found = fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            Ok((found.len(), found.mtime_nsec() ^ found.mtime() << 20, found.ino()))
        };
        self.paths()?.into_iter().map(look).collect()
    }

    fn paths(&self) -> Result<Vec<PathBuf>, String> {
        let (settings, mut all) = (&self.settings, Vec::new());
        for words in [&settings.command, &settings.undo] {
            let program = words.first().filter(|program| *program != SELF);
            if let Some(program) = program {
                all.push(find_program(program, settings.working_dir.as_deref(), &settings.env)?);
            }
        }
        all.extend(self.files.iter().cloned());
        Ok(all)
    }
}

fn of_file(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hash) = (File::open(path)?, Context::new(&SHA256));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_covers_changes_it_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let (app, model) = (folder.path().join("app"), folder.path().join("model"));
        fs::copy("/bin/true", &app).expect("copies");
        fs::write(&model, "one").expect("writes");
        let settings =
            Settings { command: vec![app.display().to_string(), "--fast".into()], ..Settings::default() };
        let covered = Covered { settings, files: vec![model.clone()], configuration: "3 devices".into() };
        let of = |covered: &Covered| covered.fingerprint(None).expect("reads");
        let (first, traced, settings) = (of(&covered), covered.trace(), covered.settings.clone());
        assert_eq!((first.len(), of(&covered), covered.trace()), (6, first.clone(), traced.clone()));
        let with = |settings| Covered { settings, ..covered.clone() };
        // Another folder to run in, and other times of the same stop, are no other workload.
        let elsewhere = Settings { working_dir: Some("/".into()), ..settings.clone() };
        assert_eq!(of(&with(elsewhere)), first);
        let slower =
            Settings { command: vec![app.display().to_string(), "--slow".into()], ..settings.clone() };
        let told = Settings { env: [("A".into(), "b".into())].into(), ..settings.clone() };
        let set_otherwise = Covered { configuration: "5 devices".into(), ..covered.clone() };
        for other in [with(slower), with(told), set_otherwise] {
            assert_ne!(of(&other), first);
        }
        assert_ne!(covered.fingerprint(Some("sha256:1")), Ok(first.clone()));
        fs::write(&model, "two").expect("writes");
        assert_ne!(of(&covered), first);
        fs::write(&model, "three").expect("writes");
        assert_ne!(covered.trace(), traced);
        fs::remove_file(&model).expect("removes");
        assert!(covered.fingerprint(None).is_err_and(|why| why.contains("model")));
    }
}
