//! One canonical form for every address the kernel can connect to.

/// An IP address as the tables know it: IPv6, with IPv4 in its mapped form `::ffff:a.b.c.d`.
///
/// The sixteen octets in network order, held as two words: the kernel programs compare words, not octets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct Address([u64; 2]);

/// How many NAT64 prefixes a host can have configured.
pub const NAT64_PREFIXES: usize = 4;

/// A configured /96 NAT64 prefix (RFC 6052): the addresses below it are judged as the IPv4 address they carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Nat64Prefix {
    /// The first twelve octets of the prefix; the last four are zero.
    pub prefix: Address,
    /// 1 if the entry is used.
    pub used: u64,
}

const fn word(octets: [u8; 8]) -> u64 {
    u64::from_ne_bytes(octets)
}

impl Address {
    /// No address: what `open-socket` carries.
    pub const NONE: Self = Self([0, 0]);
    const MAPPED: u64 = word([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    const LAST_FOUR: u64 = word([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);

    /// The address with these octets in network order.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([word([a, b, c, d, e, f, g, h]), word([i, j, k, l, m, n, o, p])])
    }

    /// The address whose octets lie in memory as these two words do.
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// The mapped form of an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, word([0, 0, 0xff, 0xff, a, b, c, d])])
    }

    /// The octets in network order, as four words that lie in memory as the octets do: map keys are four-byte aligned.
    #[inline(always)]
    pub const fn quads(&self) -> [u32; 4] {
        let [a, b] = self.0;
        if cfg!(target_endian = "little") {
            [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
        } else {
            [(a >> 32) as u32, a as u32, (b >> 32) as u32, b as u32]
        }
    }

    /// The octets in network order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]] = [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes()];
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The high and the low half, in host byte order: they compare as the address does.
    #[inline(always)]
    pub const fn halves(&self) -> [u64; 2] {
        let [high, low] = self.0;
        [u64::from_be(high), u64::from_be(low)]
    }

    /// The address with these halves, as [`Self::halves`] has them.
    #[inline(always)]
    pub const fn from_halves([high, low]: [u64; 2]) -> Self {
        Self([high.to_be(), low.to_be()])
    }

    /// The four IPv4 octets in network byte order, if this is an IPv4 address.
    #[inline(always)]
    pub const fn v4(&self) -> Option<[u8; 4]> {
        if !self.is_v4() {
            return None;
        }
        let [_, _, _, _, a, b, c, d] = self.0[1].to_ne_bytes();
        Some([a, b, c, d])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.beside_v4() == 0
    }

    /// The bits in which this address differs from an IPv4 address: 0 if it is one.
    #[inline(always)]
    pub const fn beside_v4(&self) -> u64 {
        self.0[0] | (self.0[1] & !Self::LAST_FOUR ^ Self::MAPPED)
    }

    /// The address the kernel will really connect to: the unspecified addresses are loopback (`connect(2)` to `0.0.0.0`
    /// or `::` reaches the local host), and an address below a NAT64 prefix is the IPv4 address it carries.
    #[inline(always)]
    #[must_use]
    pub fn canonical(self, nat64: &[Nat64Prefix; NAT64_PREFIXES]) -> Self {
        nat64.iter().fold(self, Address::translated).reached()
    }

    /// The IPv4 address this one carries, if it lies below the prefix; otherwise itself.
    #[inline(always)]
    #[must_use]
    pub const fn translated(self, entry: &Nat64Prefix) -> Self {
        if entry.used == 1 && self.0[0] == entry.prefix.0[0] && (self.0[1] ^ entry.prefix.0[1]) & !Self::LAST_FOUR == 0
        {
            Self([0, self.0[1] & Self::LAST_FOUR | Self::MAPPED])
        } else {
            self
        }
    }

    /// Loopback, if this is an unspecified address; otherwise itself.
    #[inline(always)]
    #[must_use]
    pub const fn reached(self) -> Self {
        match self.0 {
            [0, 0] => Self([0, word([0, 0, 0, 0, 0, 0, 0, 1])]),
            [0, Self::MAPPED] => Self::from_v4([127, 0, 0, 1]),
            _ => self,
        }
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.v4() {
            Some(octets) => core::net::Ipv4Addr::from(octets).fmt(formatter),
            None => core::net::Ipv6Addr::from(self.octets()).fmt(formatter),
        }
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(address) => Self::from_v4(address.octets()),
            core::net::IpAddr::V6(address) => Self::from_octets(address.octets()),
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        match address.v4() {
            Some(octets) => core::net::Ipv4Addr::from(octets).into(),
            None => core::net::Ipv6Addr::from(address.octets()).into(),
        }
    }
}
