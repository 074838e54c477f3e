//! A security event token (RFC 8417, as the Shared Signals Framework narrows it): verified, or refused with RFC 8935's code.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use writ_core::config::Transmitter;

/// How far ahead of ours a transmitter's clock may be.
const SKEW: i64 = 60;
/// What a token may be signed with: public keys only, so that whoever can verify cannot sign.
const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];
/// 2048 bits, in bytes.
const LEAST_MODULUS: usize = 256;

/// Why a token is refused: the code of RFC 8935, and a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    pub(super) err: &'static str,
    pub(super) description: String,
}

/// What a verified token says.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Event {
    pub(super) jti: String,
    /// The event's type, a URI.
    pub(super) kind: String,
    /// The event's own members.
    pub(super) body: Map<String, Value>,
    /// `sub_id`, or what older transmitters put into the event.
    pub(super) subject: Value,
    /// When it happened, or when it was said.
    pub(super) at: Timestamp,
}

pub(super) fn refused(err: &'static str, description: impl Into<String>) -> Refused {
    Refused { err, description: description.into() }
}

fn invalid(description: impl Into<String>) -> Refused {
    refused("invalid_request", description)
}

/// The issuer a token claims, unverified: it only says whose keys to verify with.
pub(super) fn claimed_issuer(token: &str) -> Result<String, Refused> {
    let claims: Map<String, Value> = jsonwebtoken::dangerous::insecure_decode(token)
        .map(|data| data.claims)
        .map_err(|_| invalid("the body is not a signed JSON web token"))?;
    match claims.get("iss") {
        Some(Value::String(issuer)) => Ok(issuer.clone()),
        _ => Err(refused("invalid_issuer", "`iss` is missing or not a string")),
    }
}

/// Whether the keys have the one that the token names.
pub(super) fn names_known_key(token: &str, keys: &JwkSet) -> bool {
    let kid = decode_header(token).ok().and_then(|header| header.kid);
    kid.is_none_or(|kid| keys.find(&kid).is_some())
}

/// Verifies a token of this issuer.
pub(super) fn verify(
    token: &str,
    issuer: &str,
    transmitter: &Transmitter,
    keys: &JwkSet,
    now: Timestamp,
) -> Result<Event, Refused> {
    let header = decode_header(token).map_err(|error| invalid(format!("the token's header: {error}")))?;
    let kind = header.typ.as_deref().unwrap_or_default().to_ascii_lowercase();
    if kind.strip_prefix("application/").unwrap_or(&kind) != "secevent+jwt" {
        return Err(invalid("the header's `typ` is not `secevent+jwt`"));
    }
    if !ALGORITHMS.contains(&header.alg) {
        return Err(refused("invalid_key", format!("`{:?}` is not an accepted algorithm", header.alg)));
    }
    let key = key_for(header.kid.as_deref(), keys)?;
    if key.common.key_algorithm.is_some_and(|named| named.to_string() != format!("{:?}", header.alg)) {
        return Err(refused("invalid_key", "the key is for another algorithm"));
    }
    let key = decoding_key(key)?;
    let mut validation = Validation::new(header.alg);
    validation.validate_exp = false; // A security event token has none: what it says stays true.
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[&transmitter.audience]);
    validation.set_required_spec_claims(&["iss", "aud"]);
    let claims: Map<String, Value> =
        decode(token, &key, &validation).map(|data| data.claims).map_err(|error| match error.kind() {
            ErrorKind::InvalidIssuer => refused("invalid_issuer", "`iss` is not this issuer"),
            ErrorKind::InvalidAudience => refused("invalid_audience", "the token is for somebody else"),
            ErrorKind::InvalidSignature => refused("authentication_failed", "the signature does not hold"),
            ErrorKind::InvalidKeyFormat
            | ErrorKind::InvalidAlgorithm
            | ErrorKind::InvalidRsaKey(_)
            | ErrorKind::InvalidEcdsaKey => refused("invalid_key", "the key is not one for this signature"),
            ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => refused("invalid_audience", "`aud` is missing"),
            _ => invalid(format!("the token: {error}")),
        })?;
    read(&claims, now)
}

fn key_for<'a>(kid: Option<&str>, keys: &'a JwkSet) -> Result<&'a Jwk, Refused> {
    match (kid, keys.keys.as_slice()) {
        (Some(kid), _) => {
            keys.find(kid).ok_or_else(|| refused("invalid_key", format!("the issuer has no key `{kid}`")))
        }
        (None, [only]) => Ok(only),
        (None, _) => Err(refused("invalid_key", "the header has no `kid`")),
    }
}

fn decoding_key(key: &Jwk) -> Result<DecodingKey, Refused> {
    use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve};
    match &key.algorithm {
        // Six bits a character.
        AlgorithmParameters::RSA(rsa) if rsa.n.len() * 6 / 8 < LEAST_MODULUS => {
            return Err(refused("invalid_key", "an RSA key needs at least 2048 bits"));
        }
        AlgorithmParameters::OctetKey(_) => {
            return Err(refused("invalid_key", "a shared secret is no key for security events"));
        }
        _ => {}
    }
    let mut key = key.clone();
    if let AlgorithmParameters::EllipticCurve(point) = &mut key.algorithm {
        let octets = match point.curve {
            EllipticCurve::P256 => 32,
            EllipticCurve::P384 => 48,
            _ => 0,
        };
        for coordinate in [&mut point.x, &mut point.y] {
            *coordinate = whole(coordinate, octets);
        }
    }
    DecodingKey::from_jwk(&key).map_err(|error| refused("invalid_key", error.to_string()))
}

/// A point's coordinate as long as its curve wants it (RFC 7518 §6.2.1.2): one in 128 keys has a leading zero, which some
/// libraries leave out.
fn whole(coordinate: &str, octets: usize) -> String {
    match URL_SAFE_NO_PAD.decode(coordinate) {
        Ok(given) if given.len() < octets => {
            let mut whole = vec![0; octets - given.len()];
            whole.extend(given);
            URL_SAFE_NO_PAD.encode(whole)
        }
        _ => coordinate.to_owned(),
    }
}

/// What the claims say.
pub(super) fn read(claims: &Map<String, Value>, now: Timestamp) -> Result<Event, Refused> {
    for forbidden in ["sub", "exp"] {
        if claims.contains_key(forbidden) {
            return Err(invalid(format!("a security event token has no `{forbidden}`")));
        }
    }
    let Some(jti) = claims.get("jti").and_then(Value::as_str).filter(|jti| !jti.is_empty()) else {
        return Err(invalid("`jti` is missing or not a string"));
    };
    let issued = claims.get("iat").and_then(seconds).ok_or_else(|| invalid("`iat` is missing or not a time"))?;
    if issued.as_second() > now.as_second().saturating_add(SKEW) {
        return Err(invalid("`iat` is in the future"));
    }
    let mut events = claims.get("events").and_then(Value::as_object).into_iter().flatten();
    let (Some((kind, Value::Object(body))), None) = (events.next(), events.next()) else {
        return Err(invalid("`events` has not exactly one event"));
    };
    let subject = claims.get("sub_id").or_else(|| body.get("subject"));
    let subject = subject.filter(|subject| subject.is_object()).ok_or_else(|| invalid("`sub_id` is missing"))?;
    let at = body.get("event_timestamp").and_then(seconds).unwrap_or(issued).min(issued);
    Ok(Event { jti: jti.to_owned(), kind: kind.clone(), body: body.clone(), subject: subject.clone(), at })
}

fn seconds(value: &Value) -> Option<Timestamp> {
    // A NumericDate may have a fraction; a whole second is precise enough for a signal.
    let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))?;
    Timestamp::from_second(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinate_without_its_leading_zeros_is_made_whole_and_no_other_is_touched() {
        assert_eq!(whole("AQI", 4), "AAABAg");
        assert_eq!(whole("AQI", 2), "AQI");
        assert_eq!(whole("AQID", 2), "AQID", "too long is for the verifier to refuse");
        assert_eq!(whole("no base64 ", 4), "no base64 ");
    }
}
