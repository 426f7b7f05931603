"""Who is who: identities, certificates, their authority, enrolment, mutual TLS."""
