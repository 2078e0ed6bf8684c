//! The same memory from other libraries: the crate `shared_memory`, and Python's.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use manyhands::shm::SharedMemory;
use shared_memory::{Shmem, ShmemConf};

use super::common::{Killed, Leftovers};
use super::{is_there, name_of, run};

fn read(memory: &SharedMemory, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_at(offset, &mut bytes).unwrap();
    bytes
}

/// Reads by the crate `shared_memory`.
fn read_there(theirs: &Shmem, offset: usize, len: usize) -> Vec<u8> {
    let all = theirs.as_ptr();
    // SAFETY: the memory is as long as it says, and no process writes to it meanwhile.
    let all = unsafe { std::slice::from_raw_parts(all, theirs.len()) };
    all[offset..][..len].to_vec()
}

/// Writes by the crate `shared_memory`.
fn write_there(theirs: &mut Shmem, offset: usize, bytes: &[u8]) {
    // SAFETY: no other process or thread reads or writes meanwhile.
    let all = unsafe { theirs.as_slice_mut() };
    all[offset..][..bytes.len()].copy_from_slice(bytes);
}

#[test]
fn b77_the_crate_shared_memory_opens_ours() {
    let _none = Leftovers::none();
    let name = format!("/{}", name_of("crate"));
    let memory = SharedMemory::create(&name, 5000).unwrap();
    memory.write_at(4990, b"from here").unwrap();
    let mut theirs = ShmemConf::new().os_id(&name).open().unwrap();
    assert!(theirs.len() >= 5000 && !theirs.is_owner());
    assert_eq!(read_there(&theirs, 4990, 9), b"from here");
    write_there(&mut theirs, 1, b"from there");
    drop(theirs);
    assert_eq!(read(&memory, 0, 12), b"\0from there\0");
    assert!(is_there(memory.name()));
}

#[test]
fn b77_we_open_what_the_crate_shared_memory_made() {
    let _none = Leftovers::none();
    let name = name_of("theirs");
    let os_id = format!("/{name}");
    let theirs = ShmemConf::new().size(5000).os_id(&os_id).create();
    let mut theirs = theirs.unwrap();
    write_there(&mut theirs, 4995, b"there");
    let memory = SharedMemory::open(&os_id).unwrap();
    assert_eq!((memory.len(), memory.name()), (5000, &*name));
    assert_eq!(read(&memory, 4994, 6), b"\0there");
    memory.write_at(0, b"here").unwrap();
    assert_eq!(read_there(&theirs, 0, 5), b"here\0");
    assert!(SharedMemory::create(&name, 1).is_err());
    drop(memory);
    assert!(is_there(&name), "an opener removes nothing");
    drop(theirs);
    assert!(!is_there(&name));
}

/// Opens a segment without Python's resource tracker, which would remove it at the end.
const OPEN: &str = "
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
name = sys.argv[1]
def shared(**how):
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False, **how)
    memory = SharedMemory(name, **how)
    resource_tracker.unregister(memory._name, 'shared_memory')
    return memory
";

fn python(script: &str, name: &str) -> Command {
    let mut python = Command::new("python3");
    python.args(["-c", &format!("{OPEN}{script}"), name]);
    python
}

#[test]
fn b77_python_opens_ours() {
    let _none = Leftovers::none();
    let name = name_of("python");
    let memory = SharedMemory::create(&name, 5000).unwrap();
    memory.write_at(4990, b"from Rust").unwrap();
    run(&mut python(
        "
memory = shared()
assert memory.size == 5000, memory.size
assert bytes(memory.buf[4990:4999]) == b'from Rust', bytes(memory.buf[4990:4999])
memory.buf[1:12] = b'from Python'
memory.close()
",
        &name,
    ));
    assert_eq!(read(&memory, 0, 13), b"\0from Python\0");
    assert!(is_there(&name));
}

/// The page of `SharedMemory` warns of this, and has the recipe that `OPEN` is.
#[test]
fn b121_python_without_the_recipe_removes_the_name_and_the_owner_goes_on() {
    let _none = Leftovers::none();
    let name = name_of("tracked");
    let memory = SharedMemory::create(&name, 5000).unwrap();
    memory.write_at(0, b"kept").unwrap();
    run(&mut python("SharedMemory(name).close()", &name));
    super::common::eventually("the tracker has removed the name", || !is_there(&name));
    assert_eq!(read(&memory, 0, 4), b"kept");
    // Another segment may have the name by then: it is left alone.
    let later = SharedMemory::create(&name, 100).unwrap();
    drop(memory);
    assert!(is_there(&name));
    drop(later);
    assert!(!is_there(&name));
}

#[test]
fn b77_we_open_what_python_made() {
    let _none = Leftovers::none();
    let name = name_of("snake");
    let mut python = python(
        "
memory = shared(create=True, size=5000)
memory.buf[4995:5000] = b'snake'
print('ready', flush=True)
sys.stdin.readline()
print(bytes(memory.buf[0:7]), flush=True)
memory.close()
",
        &name,
    );
    let program = python.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = Killed(program.spawn().unwrap());
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let memory = SharedMemory::open(&name).unwrap();
    assert_eq!(memory.len(), 5000);
    assert_eq!(read(&memory, 4994, 6), b"\0snake");
    memory.write_at(0, b"oxidised").unwrap();
    let mut stdin = program.0.stdin.take().unwrap();
    stdin.write_all(b"go on\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "b'oxidise'");
    assert!(program.0.wait().unwrap().success());
    drop(memory);
    assert!(!SharedMemory::cleanup().unwrap().contains(&name));
    assert!(is_there(&name), "what Python made is Python's to remove");
    SharedMemory::unlink(&name).unwrap();
}
