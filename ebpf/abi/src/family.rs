//! Socket families other than TCP and UDP over IP: what `Action::"open-socket"` decides.

/// How many families a stance distinguishes.
pub const FAMILIES: u32 = 16;

/// `AF_UNIX`
pub const AF_UNIX: u32 = 1;
/// `AF_INET`
pub const AF_INET: u32 = 2;
/// `AF_INET6`
pub const AF_INET6: u32 = 10;
/// `AF_NETLINK`
pub const AF_NETLINK: u32 = 16;

/// What kind of socket is being opened, as `context.family` names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Family {
    /// Raw IP sockets (`SOCK_RAW` over IPv4 or IPv6).
    Raw = 0,
    /// Ping sockets (`SOCK_DGRAM` with ICMP or ICMPv6).
    Icmp = 1,
    /// SCTP.
    Sctp = 2,
    /// UDP-Lite.
    Udplite = 3,
    /// DCCP.
    Dccp = 4,
    /// `AF_PACKET`.
    Packet = 5,
    /// `AF_VSOCK`.
    Vsock = 6,
    /// `AF_RDS`.
    Rds = 7,
    /// `AF_ALG`.
    Alg = 8,
    /// `AF_XDP`.
    Xdp = 9,
    /// `AF_TIPC`.
    Tipc = 10,
    /// `AF_BLUETOOTH`.
    Bluetooth = 11,
    /// `AF_UNIX`; judged only where a policy names it.
    Unix = 12,
    /// `AF_NETLINK`; judged only where a policy names it.
    Netlink = 13,
    /// Any other IP protocol.
    OtherIp = 14,
    /// Any other address family.
    Other = 15,
}

impl Family {
    /// Every family, in the order of its number.
    pub const ALL: [Self; FAMILIES as usize] = [
        Self::Raw,
        Self::Icmp,
        Self::Sctp,
        Self::Udplite,
        Self::Dccp,
        Self::Packet,
        Self::Vsock,
        Self::Rds,
        Self::Alg,
        Self::Xdp,
        Self::Tipc,
        Self::Bluetooth,
        Self::Unix,
        Self::Netlink,
        Self::OtherIp,
        Self::Other,
    ];

    /// The value of `context.family`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Icmp => "icmp",
            Self::Sctp => "sctp",
            Self::Udplite => "udplite",
            Self::Dccp => "dccp",
            Self::Packet => "packet",
            Self::Vsock => "vsock",
            Self::Rds => "rds",
            Self::Alg => "alg",
            Self::Xdp => "xdp",
            Self::Tipc => "tipc",
            Self::Bluetooth => "bluetooth",
            Self::Unix => "unix",
            Self::Netlink => "netlink",
            Self::OtherIp => "other-ip",
            Self::Other => "other",
        }
    }

    /// The family with this number, if there is one.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Raw,
            1 => Self::Icmp,
            2 => Self::Sctp,
            3 => Self::Udplite,
            4 => Self::Dccp,
            5 => Self::Packet,
            6 => Self::Vsock,
            7 => Self::Rds,
            8 => Self::Alg,
            9 => Self::Xdp,
            10 => Self::Tipc,
            11 => Self::Bluetooth,
            12 => Self::Unix,
            13 => Self::Netlink,
            14 => Self::OtherIp,
            15 => Self::Other,
            _ => return None,
        })
    }

    /// What opening an IPv4 or IPv6 socket of this type and protocol means: `None` for TCP and UDP, which are decided when
    /// they connect or send. Numbers as in `socket(2)` and IANA's protocol numbers; protocol 0 is the type's default.
    #[inline(always)]
    pub const fn of_inet(socket_type: u32, protocol: u32) -> Option<Self> {
        const STREAM: u32 = 1;
        const DGRAM: u32 = 2;
        const RAW: u32 = 3;
        match (socket_type, protocol) {
            // IPPROTO_IP (default), IPPROTO_TCP, IPPROTO_MPTCP
            (STREAM, 0 | 6 | 262) => None,
            (DGRAM, 0 | 17) => None,
            (RAW, _) => Some(Self::Raw),
            (DGRAM, 1 | 58) => Some(Self::Icmp),
            (_, 132) => Some(Self::Sctp),
            (_, 136) => Some(Self::Udplite),
            (_, 33) => Some(Self::Dccp),
            _ => Some(Self::OtherIp),
        }
    }

    /// What opening a socket of an address family (`AF_…`) means: `None` for IPv4 and IPv6, where type and protocol say it
    /// (see [`Self::of_inet`]).
    #[inline(always)]
    pub const fn of_address_family(family: u32) -> Option<Self> {
        Some(match family {
            AF_INET | AF_INET6 => return None,
            AF_UNIX => Self::Unix,
            AF_NETLINK => Self::Netlink,
            17 => Self::Packet,
            21 => Self::Rds,
            30 => Self::Tipc,
            31 => Self::Bluetooth,
            38 => Self::Alg,
            40 => Self::Vsock,
            44 => Self::Xdp,
            _ => Self::Other,
        })
    }

    /// Whether it is judged only for accounts of which a policy names it: every process opens these all the time.
    #[inline(always)]
    pub const fn only_where_named(self) -> bool {
        matches!(self, Self::Unix | Self::Netlink)
    }
}
