"""Why a far end and we do not come to terms over TLS, in words that name the file to mend."""

from __future__ import annotations

import socket
import ssl

from skerry.errors import ConfigError
from skerry.mqtt import tls_context
from skerry.settings import TlsSettings


def reason(host: str, port: int, tls: TlsSettings, timeout_s: float) -> str:
    """Shake hands once more and say what is wrong; "" when nothing is, or it is not about TLS.

    For clients that keep it to themselves: s2n, which is AWS's, says nothing for half a minute.

    Args:
        host: where to, and the name that the certificate must have.
        port: where to.
        tls: the files.
        timeout_s: of each step: to connect, to shake hands, and to wait for a late refusal.
    """
    try:
        context = tls_context(tls)
        with (
            socket.create_connection((host, port), timeout_s) as connection,
            context.wrap_socket(connection, server_hostname=host) as secure,
        ):
            secure.recv(1)  # with TLS 1.3 the refusal of our certificate comes after the handshake
    except ConfigError as error:
        return str(error)
    except ssl.SSLCertVerificationError as error:
        what = error.verify_message.rstrip(".")
        if "mismatch" in what:
            return f"{what} (is {host} the right endpoint?)"
        return f"the far end's certificate: {what} (check tls.ca {tls.ca or 'of the system'}, and the clock)"
    except ssl.SSLError as error:
        what = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in what:
            return f"the far end refuses tls.certificate {tls.certificate}: {what}"
        return f"TLS: {what}"
    except OSError:
        pass  # not about TLS: what the client said stands
    return ""
