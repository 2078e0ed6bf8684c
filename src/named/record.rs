//! The record beside a segment that says which process owns it.
//!
//! A segment holds only what its users write, so that other programs can share it. Its maker is
//! named in a file beside it, `.manyhands-<pid>-<count>`. That file gets its name only when it is
//! whole, and before the segment gets its own: a segment made by this crate is never without its
//! record. But a record may be without its segment. It identifies the very file, so a file that
//! another program has put in that place is not taken for it.
//!
//! Records lie in a directory to which every user may write. A record counts only if it is a file
//! of this user that no other user may open. And it can make this crate do no more than what the
//! user could do anyway: remove a segment of their own.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::name::{self, RESERVED};
use crate::os::life::Life;
use crate::os::named::{self, FileId};

/// What a record begins with. The number goes up when the format changes; records with another
/// number are left alone.
const HEAD: &str = "manyhands segment 1";

/// More bytes than any record has.
const LARGEST: u64 = 1024;

/// A file with a name in `/dev/shm`, as it was seen once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) file: FileId,
}

impl Entry {
    /// Returns whether the name still belongs to that file.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        match named::status(&self.name) {
            Ok(status) => Ok(FileId::of(&status) == self.file),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the name if it still belongs to that file, and returns whether it did.
    pub(super) fn remove(&self) -> io::Result<bool> {
        if !self.is_there()? {
            return Ok(false);
        }
        match named::unlink(&self.name) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Which process owns a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) owner: Life,
    pub(super) segment: Entry,
}

impl Record {
    fn to_text(&self) -> String {
        let Life {
            pid,
            started,
            pids,
            times,
        } = self.owner;
        let Entry { name, file } = &self.segment;
        let FileId {
            device,
            inode,
            born,
        } = file;
        // The name comes last: it may contain line ends.
        format!(
            "{HEAD}\nowner {pid} {started} {pids} {times}\nfile {device} {inode} {born}\nname {name}"
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.splitn(4, '\n');
        if lines.next()? != HEAD {
            return None;
        }
        let [pid, started, pids, times] = numbers(lines.next()?.strip_prefix("owner ")?)?;
        let [device, inode, born] = numbers(lines.next()?.strip_prefix("file ")?)?;
        let name = lines.next()?.strip_prefix("name ")?;
        if name::checked(name) != Ok(name) {
            return None;
        }
        Some(Self {
            owner: Life {
                pid: pid.try_into().ok()?,
                started,
                pids,
                times,
            },
            segment: Entry {
                name: name.to_owned(),
                file: FileId {
                    device,
                    inode,
                    born,
                },
            },
        })
    }

    /// Writes the whole record, under a name that no other file has.
    pub(super) fn write(&self) -> io::Result<Entry> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut file = named::nameless()?;
        file.write_all(self.to_text().as_bytes())?;
        let id = FileId::of(&file.metadata()?);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{RESERVED}{}-{count}", self.owner.pid);
            match named::link(&file, &name) {
                Ok(()) => return Ok(Entry { name, file: id }),
                // Left by a process that had this pid before, or has it in another namespace.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && count < u32::MAX => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Parses exactly as many numbers as are wanted, and nothing else.
fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let numbers: Option<Vec<u64>> = text.split(' ').map(|word| word.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// A record that was found.
pub(super) struct Found {
    pub(super) record: Record,
    pub(super) entry: Entry,
    /// A process that removes what a record is about holds the lock of its file.
    pub(super) file: File,
}

/// Returns this user's records. A file that cannot be read, or does not look as this crate leaves
/// it, is not among them.
pub(super) fn all() -> io::Result<impl Iterator<Item = Found>> {
    let names = named::names()?.into_iter();
    Ok(names
        .filter(|name| name.starts_with(RESERVED))
        .filter_map(read))
}

fn read(name: String) -> Option<Found> {
    let file = named::open_to_read(&name).ok()?;
    let status = file.metadata().ok()?;
    let is_private = status.uid() == named::user() && status.mode() & 0o7777 == 0o600;
    if !status.is_file() || !is_private || status.nlink() != 1 || status.len() > LARGEST {
        return None;
    }
    let mut text = String::new();
    (&file).take(LARGEST).read_to_string(&mut text).ok()?;
    let record = Record::parse(&text)?;
    let entry = Entry {
        name,
        file: FileId::of(&status),
    };
    Some(Found {
        record,
        entry,
        file,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(name: &str) -> Record {
        Record {
            owner: Life {
                pid: 4711,
                started: 12,
                pids: 4_026_531_836,
                times: 0,
            },
            segment: Entry {
                name: name.to_owned(),
                file: FileId {
                    device: 25,
                    inode: u64::MAX,
                    born: 1,
                },
            },
        }
    }

    #[test]
    fn what_is_not_exactly_a_record_is_none() {
        let text = record("a").to_text();
        assert!(Record::parse(&text).is_some());
        for (right, wrong) in [
            ("segment 1", "segment 2"),
            ("owner 4711", "owner -4711"),
            ("owner 4711", "owner 99999999999"),
            ("owner 4711", "owner 4711 1"),
            ("owner 4711 ", "owner "),
            ("file 25", "file 0x25"),
            ("name a", "name a/b"),
            ("name a", "name /a"),
            ("name a", "name .."),
            ("name a", "name .manyhands-1-1"),
            ("name a", "name "),
            ("name a", "name a\0"),
            ("\nname a", ""),
        ] {
            assert!(text.contains(right));
            assert_eq!(Record::parse(&text.replace(right, wrong)), None, "{wrong}");
        }
        let longest = "x".repeat(255);
        assert!(record(&longest).to_text().len() < LARGEST as usize);
    }

    proptest! {
        #[test]
        fn records_come_back_whatever_the_name(name in "[^/\0]{1,60}") {
            prop_assume!(name::checked(&name) == Ok(&*name));
            let record = record(&name);
            prop_assert_eq!(Record::parse(&record.to_text()), Some(record));
        }

        #[test]
        fn noise_is_no_record(text in "(manyhands segment 1\n)?(owner [0-9 ]{0,50}\n)?(file [0-9 ]{0,50}\n)?(name )?.{0,20}") {
            // The text may well be a record. Parsing must not panic, and a record must mean what it
            // says.
            if let Some(record) = Record::parse(&text) {
                prop_assert_eq!(Record::parse(&record.to_text()), Some(record));
            }
        }
    }
}
