//! The session inside the bodies: TLS 1.3, in which both ends prove their Ed25519 keys.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
        UnixTime,
    },
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use super::super::{
    dial::DialError,
    quic::alpn,
    transport::{Identity, Place, Secret},
};
use crate::identity::PeerId;

/// What stands before the 32 bytes of an Ed25519 key as SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [48, 42, 48, 5, 6, 3, 43, 101, 112, 3, 33, 0];
/// What stands before the 32 bytes of an Ed25519 secret as PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];

/// A client that takes nobody but this member for it.
pub(super) fn client(identity: &Identity, member: PeerId) -> Result<ClientConfig, DialError> {
    let key = AlwaysResolvesClientRawPublicKeys::new(certified(&identity.secret)?);
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(DialError::new)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ThisMember(member)));
    let mut config = config.with_client_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![alpn(&identity.network)];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// A member that takes whoever proves a key.
pub(super) fn server(place: &Place) -> Result<ServerConfig, DialError> {
    let key = AlwaysResolvesServerRawPublicKeys::new(certified(&place.secret)?);
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(DialError::new)?
        .with_client_cert_verifier(Arc::new(AnyKey));
    let mut config = config.with_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![alpn(&place.network)];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The outside of an `https` URL, whose certificate is not looked at: see the module above.
pub(super) fn outside() -> Result<ClientConfig, DialError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(DialError::new)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(ring::default_provider())));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether both ends have named this network: TLS goes on where one names none.
pub(super) fn check_network(network: &[u8; 32], agreed: Option<&[u8]>) -> Result<(), DialError> {
    match agreed == Some(&alpn(network)[..]) {
        true => Ok(()),
        false => Err(DialError::new("it is of another network, or names none")),
    }
}

/// Whose key was proven.
pub(super) fn proven(certificates: Option<&[CertificateDer<'_>]>) -> Option<PeerId> {
    let [key] = certificates? else { return None };
    let key = key.strip_prefix(&SPKI[..])?;
    key.try_into().ok().map(PeerId::from_bytes)
}

fn certified(secret: &Secret) -> Result<Arc<CertifiedKey>, DialError> {
    let pkcs8 = [&PKCS8[..], secret.bytes()].concat();
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    let key = ring::sign::any_eddsa_type(match &pkcs8 {
        PrivateKeyDer::Pkcs8(it) => it,
        _ => return Err(DialError::new("no key")),
    });
    let key = key.map_err(DialError::new)?;
    let public = [&SPKI[..], secret.peer().as_bytes()].concat();
    let certificate = vec![CertificateDer::from(public)];
    Ok(Arc::new(CertifiedKey::new(certificate, key)))
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

fn not_the_key() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// What both ends hold of signatures: TLS 1.3, and raw Ed25519 keys.
macro_rules! ed25519_keys_alone {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("only TLS 1.3 is spoken".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            key: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let key = SubjectPublicKeyInfoDer::from(key.as_ref());
            verify_tls13_signature_with_raw_key(message, &key, signed, &algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

/// Takes the key of one member, and no other.
#[derive(Debug)]
struct ThisMember(PeerId);

impl ServerCertVerifier for ThisMember {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match others.is_empty() && proven(Some(std::slice::from_ref(key))) == Some(self.0) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(not_the_key()),
        }
    }

    ed25519_keys_alone!();
}

/// Takes every Ed25519 key: what its owner may do is decided by others.
#[derive(Debug)]
struct AnyKey;

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match others.is_empty() && proven(Some(std::slice::from_ref(key))).is_some() {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(not_the_key()),
        }
    }

    ed25519_keys_alone!();
}

/// Takes whatever certificate a proxy shows.
#[derive(Debug)]
struct Anybody(CryptoProvider);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
