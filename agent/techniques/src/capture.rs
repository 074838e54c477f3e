//! What really left: a capture of everything that passes the loopback device of the scene's network namespace.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::scene::Scene;

const ETHERNET_HEADER: usize = 14;
/// The kernel's memory for packets that wait to be read, in bytes; a flood of small packets fits.
const WAITING: usize = 64 << 20;

/// Which packets count as having got out.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// To this address.
    pub address: Ipv4Addr,
    /// Or to this port, of any address and transport that has ports where TCP has them.
    pub port: u16,
    /// Or with these bytes in them, and not to `except`.
    pub marker: Vec<u8>,
    /// An endpoint that is permitted.
    pub except: (Ipv4Addr, u16),
}

impl Wanted {
    /// What is forbidden in this scene.
    pub fn of(scene: &Scene) -> Self {
        Self {
            address: scene.forbidden,
            port: scene.port,
            marker: scene.marker.clone().into_bytes(),
            except: (*scene.permitted.ip(), scene.permitted.port()),
        }
    }

    /// Whether an Ethernet frame is one.
    pub fn matches(&self, frame: &[u8]) -> bool {
        let packet = frame.get(ETHERNET_HEADER..).unwrap_or_default();
        let to = destination(packet);
        if let Some((IpAddr::V4(address), port)) = to {
            if (address, port) == (self.except.0, Some(self.except.1)) {
                return false;
            }
            if address == self.address {
                return true;
            }
        }
        if to.is_some_and(|(_, port)| port == Some(self.port)) {
            return true;
        }
        !self.marker.is_empty() && frame.windows(self.marker.len()).any(|bytes| bytes == self.marker)
    }
}

/// Where an IP packet goes: its address, and its port if its protocol has one.
fn destination(packet: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    // TCP, UDP, DCCP, SCTP, UDP-Lite
    let has_ports = |protocol: u8| matches!(protocol, 6 | 17 | 33 | 132 | 136);
    let port = |protocol: &u8, at: usize| {
        let bytes: [u8; 2] = packet.get(at..at + 2)?.try_into().ok()?;
        has_ports(*protocol).then(|| u16::from_be_bytes(bytes))
    };
    let first = *packet.first()?;
    match first >> 4 {
        4 => {
            let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            let header = usize::from(first & 15) * 4;
            Some((Ipv4Addr::from(address).into(), port(packet.get(9)?, header + 2)))
        }
        6 => {
            let address: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some((Ipv6Addr::from(address).into(), port(packet.get(6)?, 42)))
        }
        _ => None,
    }
}

/// A capture that has begun.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
}

impl Capture {
    /// Begins to capture whatever passes any device of the present network namespace.
    ///
    /// # Errors
    /// The kernel's errno; EPERM without CAP_NET_RAW.
    pub fn begin() -> io::Result<Self> {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
        socket.set_nonblocking(true)?;
        crate::system::receive_buffer(&socket, WAITING)?;
        Ok(Self { socket })
    }

    /// Reads what has passed since the last call, and counts what is wanted. What a process sent has passed once its call
    /// has returned: the kernel shows packets to captures as it hands them to the device.
    ///
    /// # Errors
    /// The kernel's errno. ENOBUFS: more passed than could be kept, so that the count would not be true.
    pub fn count(&self, wanted: &Wanted) -> io::Result<u64> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
        let mut count = 0;
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let read: Vec<u8> = buffer
                        .iter()
                        .take(length)
                        // SAFETY: the kernel has initialised the first `length` bytes.
                        .map(|byte| unsafe { byte.assume_init() })
                        .collect();
                    count += u64::from(wanted.matches(&read));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if crate::system::packets_dropped(&self.socket)? > 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            address: Ipv4Addr::new(127, 66, 0, 1),
            port: 7766,
            marker: b"mark".to_vec(),
            except: (Ipv4Addr::new(127, 66, 0, 2), 7767),
        }
    }

    fn udp(to: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_HEADER + 28];
        frame[ETHERNET_HEADER] = 0x45;
        frame[ETHERNET_HEADER + 9] = 17;
        frame[ETHERNET_HEADER + 16..ETHERNET_HEADER + 20].copy_from_slice(&to);
        frame[ETHERNET_HEADER + 22..ETHERNET_HEADER + 24].copy_from_slice(&port.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn what_is_forbidden_counts_by_address_port_or_marker() {
        let wanted = wanted();
        assert!(wanted.matches(&udp([127, 66, 0, 1], 53, b"")));
        assert!(wanted.matches(&udp([127, 0, 0, 1], 7766, b"")));
        assert!(wanted.matches(&udp([127, 0, 0, 1], 53, b"a mark in it")));
        assert!(!wanted.matches(&udp([127, 0, 0, 1], 53, b"nothing")));
        assert!(!wanted.matches(&udp([127, 66, 0, 2], 7767, b"a permitted mark")));
    }

    #[test]
    fn garbage_is_no_packet() {
        for length in 0..64 {
            assert!(!wanted().matches(&vec![0x45; length]), "{length}");
            assert!(!wanted().matches(&vec![0x60; length]), "{length}");
        }
    }
}
