//! A socket between parent and worker. It carries one greeting with descriptors. After that it
//! says, by being open, that the other side is alive.

use std::io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv,
    recvmsg, sendmsg, socketpair,
};

use super::refusal::refused;
use super::{above_standard, out_of_reach};

/// Makes a connected pair of sockets that keep message boundaries. They are close-on-exec, and
/// their numbers are high, out of reach of code that uses a number after it has closed it: a
/// message over a life line kills.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|error| refused("socketpair", "the life line of a process", error))?;
    Ok((out_of_reach(one)?, out_of_reach(other)?))
}

/// Makes a pipe; close-on-exec.
pub(crate) fn pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) =
        io::pipe().map_err(|error| refused("pipe", "the output of a process", error))?;
    let reader = above_standard(reader.into())?;
    Ok((reader.into(), above_standard(writer.into())?.into()))
}

/// Makes reads from the descriptor, and from its copies, fail with `WouldBlock` where there is
/// nothing to read yet.
pub(crate) fn never_block(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Sends one message, and copies of the descriptors with it. Waits while too many messages lie
/// there that the other side has not taken.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_with(MsgFlags::empty(), socket, message, fds)
}

/// Sends like `send`, but fails with [`WouldBlock`](io::ErrorKind::WouldBlock) instead of
/// waiting.
pub(crate) fn send_at_once(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_with(MsgFlags::MSG_DONTWAIT, socket, message, fds)
}

fn send_with(
    flags: MsgFlags,
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(message)],
        if fds.is_empty() { &[] } else { &rights },
        MsgFlags::MSG_NOSIGNAL | flags,
        None,
    )
    .map_err(|error| refused("sendmsg", "the life line of a process", error))?;
    Ok(())
}

/// Looks at the first `buffer.len()` bytes of the message that waits, without taking it or waiting
/// for it. Returns how many bytes that are; `None` if there is no message, or if the descriptor is
/// no such socket.
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Option<usize> {
    recv(
        socket.as_raw_fd(),
        buffer,
        MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
    )
    .ok()
}

/// Takes the message that waits. Returns its length and the descriptors that have come with it. A
/// length of 0 means that the other side has closed its end.
pub(crate) fn receive_all(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 8]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let what = "the descriptors of a process";
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)
        .map_err(|error| refused("recvmsg", what, error))?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    // ENOBUFS: the limit on descriptors has left no room for all that came. Those that did come
    // stay open: a process that has this little room ends, or starts no more processes.
    let controls = message.cmsgs().map_err(|error| match error {
        Errno::ENOBUFS => refused("recvmsg", what, Errno::EMFILE),
        error => error.into(),
    })?;
    for control in controls {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this message, and no other
            // code has seen them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    // Many of them stay open as long as the process.
    let fds = fds.into_iter().map(out_of_reach);
    Ok((message.bytes, fds.collect::<io::Result<_>>()?))
}

/// Returns whether a message waits, or the other side has closed its end.
pub(crate) fn has_news(socket: &OwnedFd) -> bool {
    peek(socket.as_fd(), &mut [0]).is_some()
}

/// Returns whether the other side has closed its end.
pub(crate) fn is_closed(socket: &OwnedFd) -> bool {
    peek(socket.as_fd(), &mut [0]) == Some(0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    #[test]
    fn a_message_comes_with_its_descriptors_and_is_not_waited_for() {
        let (one, other) = pair().unwrap();
        let mut buffer = [0; 8];
        let nothing = receive_all(one.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(peek(one.as_fd(), &mut buffer), None);
        assert!(!has_news(&one) && !is_closed(&one));
        let pipes = [(); 2].map(|()| pipe().unwrap());
        let writers = [pipes[0].1.as_fd(), pipes[1].1.as_fd()];
        send(other.as_fd(), b"two", &writers).unwrap();
        send_at_once(other.as_fd(), b"none", &[]).unwrap();
        // A look takes nothing away.
        for _ in 0..2 {
            assert_eq!(peek(one.as_fd(), &mut buffer), Some(3));
            assert!(has_news(&one) && !is_closed(&one));
        }
        let (len, fds) = receive_all(one.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..len], fds.len()), (&b"two"[..], 2));
        for (number, (fd, (mut reader, writer))) in (1..).zip(fds.into_iter().zip(pipes)) {
            drop(writer);
            PipeWriter::from(fd).write_all(&[number]).unwrap();
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [number]);
        }
        let (len, fds) = receive_all(one.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..len], fds.len()), (&b"none"[..], 0));
        // To close the descriptor is not enough: a child that another test forks may have a copy.
        shutdown(other.as_raw_fd(), Shutdown::Both).unwrap();
        assert!(has_news(&one) && is_closed(&one));
    }

    #[test]
    fn a_message_for_which_there_is_no_room_is_not_waited_for() {
        let (one, _other) = pair().unwrap();
        let message = [0; 1_024];
        let sent = (0..1_000_000).find_map(|_| send_at_once(one.as_fd(), &message, &[]).err());
        let refused = sent.expect("it has been sent a gigabyte");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }
}
