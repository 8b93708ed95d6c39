//! Client addresses as limits count them.

use std::net::{IpAddr, Ipv6Addr};

/// Bits of an IPv6 address that lead to one customer's network: whoever has one address there has all of
/// them.
const IPV6_NETWORK_BITS: u32 = 64;

/// The network that a limit for each client counts an address to: an IPv4 address alone, an IPv6 address with
/// its /64.
#[must_use]
pub fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << (u128::BITS - IPV6_NETWORK_BITS));
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_client_is_its_network_and_an_ipv4_client_its_address() {
        let network_of = |client: &str| network(client.parse().expect("an address")).to_string();
        for (client, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
            ("::1", "::"),
        ] {
            assert_eq!(network_of(client), expected, "{client}");
        }
    }
}
