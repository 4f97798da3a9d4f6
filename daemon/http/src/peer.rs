//! The process at the other end of the control socket.
//!
//! The socket's mode (0660) limits who may connect. This second check keeps others out even if somebody changes the mode by hand
//! or hands over a data directory with open permissions.

use axum::Extension;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};

/// Linux: the supplementary groups of the peer (unix(7)); the libc crate lacks this constant.
const SO_PEERGROUPS: libc::c_int = 59;

/// Most groups of a peer that are checked.
const MAX_GROUPS: usize = 4096;

/// A process at the time of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    uid: u32,
    groups: Vec<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self::of(stream.io())
    }
}

impl Peer {
    /// The peer of a stream; a peer without rights if the kernel does not tell.
    fn of(stream: &UnixStream) -> Self {
        match stream.peer_cred() {
            Ok(cred) => {
                let mut groups = supplementary_groups(stream);
                groups.push(cred.gid());
                Self { uid: cred.uid(), groups }
            }
            Err(error) => {
                log::warn!("control socket: the kernel does not name the peer: {error}");
                Self { uid: u32::MAX, groups: vec![] }
            }
        }
    }

    /// True for our own user, root, and members of the socket's group.
    fn may_use(&self, owner: u32, group: Option<u32>) -> bool {
        self.uid == owner || self.uid == 0 || group.is_some_and(|group| self.groups.contains(&group))
    }
}

#[allow(unsafe_code, reason = "getsockopt has no safe wrapper for this option")]
fn supplementary_groups(stream: &UnixStream) -> Vec<u32> {
    let mut groups = vec![0_u32; MAX_GROUPS];
    let mut bytes = (MAX_GROUPS * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `stream` lives. The kernel writes at most `bytes` bytes into `groups`, which
    // has room for them, and then sets `bytes` to the length written.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut bytes)
    };
    // Kernels before 4.13 lack the option; the primary group still counts.
    groups.truncate(if result == 0 { bytes as usize / size_of::<u32>() } else { 0 });
    groups
}

/// Lets a request through if its sender may use the socket at `path`.
pub(super) async fn check(
    Extension(path): Extension<Arc<Path>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    // Read each time: the owner may give the socket to another group while we run.
    let group = path.metadata().ok().map(|meta| meta.gid());
    if peer.may_use(rustix::process::geteuid().as_raw(), group) {
        return next.run(request).await;
    }
    log::warn!("control socket: user {} is refused", peer.uid);
    let remedy = "only the daemon's user, root and members of the socket's group may use it (chgrp GROUP control.sock)";
    (StatusCode::FORBIDDEN, format!("user {} may not use the control socket; {remedy}\n", peer.uid)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owner_root_and_group_may_use_the_socket() {
        let peer = |uid, groups: &[u32]| Peer { uid, groups: groups.into() };
        assert!(peer(1000, &[1000]).may_use(1000, Some(990)));
        assert!(peer(0, &[0]).may_use(1000, None));
        assert!(peer(1001, &[1001, 990]).may_use(1000, Some(990)));
        for other in [peer(1001, &[1001]), peer(u32::MAX, &[]), peer(990, &[1000])] {
            assert!(!other.may_use(1000, Some(990)) && !other.may_use(1000, None), "{other:?}");
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_our_own_user_and_groups() {
        let (here, _there) = UnixStream::pair().expect("a pair of sockets");
        let peer = Peer::of(&here);
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        let mut own: Vec<u32> = rustix::process::getgroups().expect("our groups").iter().map(|group| group.as_raw()).collect();
        own.push(rustix::process::getegid().as_raw());
        assert_eq!(peer.groups, own);
    }
}
