//! What a real store did to its files, as recorded by strace, and what a power cut may have left of it.
//!
//! A disk as strict as POSIX lets it be: what was written to a file counts only after that file's fsync, a name only after
//! its folder's. Until then any of it may be there or not, in any order, in pieces of 512 bytes; names alone keep their
//! order, as every journal does. `sync_file_range` counts for nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

/// One thing that was done. Paths are relative to the data folder.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Write {
        file: String,
        at: usize,
        data: Vec<u8>,
    },
    Length {
        file: String,
        length: usize,
    },
    Create {
        file: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        file: String,
    },
    /// Everything done to it before this number of operations is durable; for a folder, its names.
    Sync {
        file: String,
        before: usize,
    },
    /// Somebody was told that this many changes are durable.
    Told(usize),
}

pub(super) const TOLD: &str = "acknowledged: ";

/// Runs a test of this binary again under strace and reads what it did below `folder`.
pub(super) fn record(test: &str, variable: &str, folder: &Path) -> Vec<Op> {
    let trace = folder.with_extension("trace");
    #[expect(clippy::disallowed_methods, reason = "the recorder is a process of its own")]
    let output = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "2000000", "-e"])
        .arg(
            "trace=openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat",
        )
        .arg("-o")
        .arg(&trace)
        .arg(std::env::current_exe().expect("the test's own path"))
        .args(["--exact", test, "--nocapture"])
        .env(variable, folder)
        .output()
        .expect("this test needs the program strace (Debian: apt-get install strace)");
    assert!(
        output.status.success(),
        "the recording failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    read(&std::fs::read_to_string(&trace).expect("strace wrote its trace"), folder)
}

/// All strings of a line, which strace has written in hex: `"\x2f\x61"`, and `<\x2f\x61>` for what a descriptor is.
fn plain(line: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find(['"', '<']) {
        let end = if rest[at..].starts_with('"') { '"' } else { '>' };
        rest = &rest[at + 1..];
        let Some(length) = rest.find(end) else { break };
        let text = &rest[..length];
        rest = &rest[length + 1..];
        found.push(if text.starts_with("\\x") {
            text.split("\\x").skip(1).filter_map(|b| u8::from_str_radix(b.get(..2)?, 16).ok()).collect()
        } else {
            text.as_bytes().to_vec()
        });
    }
    found
}

fn read(trace: &str, folder: &Path) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut begun: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread.to_owned(), (first.to_owned(), ops.len()));
            continue;
        }
        let (whole, before) = match rest.strip_prefix("<... ").and_then(|r| r.split_once(" resumed>")) {
            Some((_, end)) => {
                let (first, before) = begun.remove(thread).unwrap_or_default();
                (first + end, before)
            }
            None => (rest.to_owned(), ops.len()),
        };
        let Some((name, arguments)) = whole.split_once('(') else { continue };
        let Some((arguments, result)) = arguments.rsplit_once(" = ") else { continue };
        if result.starts_with('-') {
            continue;
        }
        let strings = plain(arguments);
        let path = |n: usize| -> Option<String> {
            let path = PathBuf::from(String::from_utf8(strings.get(n)?.clone()).ok()?);
            let path = path.strip_prefix(folder).ok()?.to_str()?.to_owned();
            let own = ["store.check", "reserve", ".probe", "quarantine"].iter().all(|o| !path.starts_with(o));
            own.then_some(path)
        };
        let fd = arguments.split('<').next().unwrap_or_default().to_owned();
        let number = || -> usize {
            let last = arguments.trim_end().trim_end_matches(')').rsplit(", ").next();
            last.and_then(|n| n.parse().ok()).expect("a number")
        };
        let data = || strings.get(1).cloned().unwrap_or_default();
        match name {
            "write" if data().starts_with(TOLD.as_bytes()) => {
                let text = String::from_utf8(data()).expect("text");
                ops.push(Op::Told(text[TOLD.len()..].trim().parse().expect("a number")));
            }
            "openat" => {
                let fresh = result.split('<').next().unwrap_or_default().to_owned();
                places.insert(fresh, 0);
                // The first string is the folder that relative paths start from.
                let Some(file) = path(strings.len() - 1).filter(|_| arguments.contains("O_CREAT")) else {
                    continue;
                };
                ops.push(Op::Create { file: file.clone() });
                if arguments.contains("O_TRUNC") {
                    ops.push(Op::Length { file, length: 0 });
                }
            }
            "write" => {
                let Some(file) = path(0) else { continue };
                let place = places.entry(fd).or_default();
                let (at, data) = (*place, data());
                *place += data.len();
                ops.push(Op::Write { file, at, data });
            }
            "pwrite64" => {
                let Some(file) = path(0) else { continue };
                ops.push(Op::Write { file, at: number(), data: data() });
            }
            "ftruncate" => {
                let Some(file) = path(0) else { continue };
                ops.push(Op::Length { file, length: number() });
            }
            "fsync" | "fdatasync" => {
                let Some(file) = path(0) else { continue };
                ops.push(Op::Sync { file, before });
            }
            "rename" | "renameat" | "renameat2" => {
                let named: Vec<String> =
                    (0..strings.len()).filter_map(path).filter(|p| !p.is_empty()).collect();
                let [from, to] = named.as_slice() else { continue };
                ops.push(Op::Rename { from: from.clone(), to: to.clone() });
            }
            "unlink" | "unlinkat" => {
                let Some(file) = path(strings.len() - 1) else { continue };
                ops.push(Op::Remove { file });
            }
            _ => {}
        }
    }
    ops
}

#[derive(Debug, Clone)]
pub(super) enum Piece {
    Write { at: usize, data: Vec<u8> },
    Length(usize),
}

impl Piece {
    pub(super) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Piece::Write { at, data } => {
                let end = at + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(data);
            }
            Piece::Length(length) => content.resize(*length, 0),
        }
    }
}

/// A file, whatever its name: what is durable, and what may be.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) durable: Vec<u8>,
    /// With the number of the operation.
    pub(super) pending: Vec<(usize, Piece)>,
}

#[derive(Debug, Clone)]
enum Naming {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

/// The disk at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) inodes: Vec<Inode>,
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    naming: Vec<(usize, Naming)>,
    pub(super) told: usize,
    done: usize,
}

impl Model {
    pub(super) fn step(&mut self, op: &Op) {
        let number = self.done;
        self.done += 1;
        let name = |model: &mut Model, naming: Naming| {
            naming.apply(&mut model.live);
            model.naming.push((number, naming));
        };
        match op {
            Op::Create { file } => {
                if !self.live.contains_key(file) {
                    self.inodes.push(Inode::default());
                    let inode = self.inodes.len() - 1;
                    name(self, Naming::Link(file.clone(), inode));
                }
            }
            Op::Rename { from, to } => name(self, Naming::Rename(from.clone(), to.clone())),
            Op::Remove { file } => name(self, Naming::Unlink(file.clone())),
            Op::Write { file, at, data } => self.touch(file, Piece::Write { at: *at, data: data.clone() }),
            Op::Length { file, length } => self.touch(file, Piece::Length(*length)),
            Op::Sync { file, before } => match self.live.get(file) {
                Some(inode) => {
                    let inode = &mut self.inodes[*inode];
                    let covered = inode.pending.iter().take_while(|(n, _)| n < before).count();
                    for (_, piece) in inode.pending.drain(..covered) {
                        piece.apply(&mut inode.durable);
                    }
                }
                None => {
                    let covered = self.naming.iter().take_while(|(n, _)| n < before).count();
                    for (_, naming) in self.naming.drain(..covered) {
                        naming.apply(&mut self.durable);
                    }
                }
            },
            Op::Told(told) => self.told = *told,
        }
    }

    fn touch(&mut self, file: &str, piece: Piece) {
        let inode = *self.live.get(file).expect("a file is made before it is written");
        self.inodes[inode].pending.push((self.done - 1, piece));
    }

    /// How many changes of names are not durable.
    pub(super) fn names(&self) -> usize {
        self.naming.len()
    }

    /// The disk after a power cut: the first `names` changes of names have arrived, and of each file what `content`
    /// says.
    pub(super) fn cut(
        &self,
        names: usize,
        mut content: impl FnMut(&Inode) -> Vec<u8>,
    ) -> BTreeMap<String, Vec<u8>> {
        let mut durable = self.durable.clone();
        for (_, naming) in self.naming.iter().take(names) {
            naming.apply(&mut durable);
        }
        durable.into_iter().map(|(name, inode)| (name, content(&self.inodes[inode]))).collect()
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Naming::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Naming::Unlink(name) => {
                names.remove(name);
            }
            Naming::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}
