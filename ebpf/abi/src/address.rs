//! One canonical form for every address the kernel can connect to.

/// An IP address as the tables know it: IPv6, with IPv4 in its mapped form `::ffff:a.b.c.d`. Aligned, so that the kernel
/// programs compare words and not bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C, align(8))]
pub struct Address(pub [u8; 16]);

/// How many NAT64 prefixes a host can have configured.
pub const NAT64_PREFIXES: usize = 4;

/// A configured /96 NAT64 prefix (RFC 6052): the addresses below it are judged as the IPv4 address they carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Nat64Prefix {
    /// The first twelve bytes of the prefix.
    pub prefix: [u8; 12],
    /// 1 if the entry is used.
    pub used: u32,
}

impl Address {
    /// The mapped form of an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The four IPv4 octets in network byte order, if this is an IPv4 address.
    #[inline(always)]
    pub const fn v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// The address the kernel will really connect to: the unspecified addresses are loopback (`connect(2)` to `0.0.0.0`
    /// or `::` reaches the local host), and an address below a NAT64 prefix is the IPv4 address it carries.
    #[inline(always)]
    pub fn canonical(self, nat64: &[Nat64Prefix; NAT64_PREFIXES]) -> Self {
        nat64.iter().fold(self, |address, entry| address.translated(entry)).reached()
    }

    /// The IPv4 address this one carries, if it lies below the prefix; otherwise itself.
    #[inline(always)]
    #[must_use]
    pub fn translated(self, entry: &Nat64Prefix) -> Self {
        let [prefix @ .., a, b, c, d] = self.0;
        if entry.used == 1 && prefix == entry.prefix { Self::from_v4([a, b, c, d]) } else { self }
    }

    /// Loopback, if this is an unspecified address; otherwise itself.
    #[inline(always)]
    #[must_use]
    pub fn reached(self) -> Self {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] => Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0] => Self::from_v4([127, 0, 0, 1]),
            _ => self,
        }
    }
}
