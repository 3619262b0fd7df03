import com.google.gson.Gson;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.JwtSource;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Source;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.math.BigInteger;
import java.net.InetAddress;
import java.net.Socket;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/**
 * A workload in Java on java-spiffe. It holds an X509Source and a JwtSource, prints each update as a line of JSON once it has checked it,
 * and does what lines on standard input say (see ../../../../README.md).
 */
final class Workload {
    private static final int PATIENCE = 20_000; // ms
    private final X509Source source = DefaultX509Source.newSource();
    private final JwtSource tokens = DefaultJwtSource.newSource();
    private final WorkloadApiClient client = DefaultWorkloadApiClient.newClient();

    private Workload() throws Exception {}

    public static void main(String[] args) throws Exception {
        Workload w = new Workload();
        Thread watch = new Thread(w::watch);
        watch.setDaemon(true);
        watch.start();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                w.run(line.split(" "));
            } catch (Exception e) {
                say("refused", "error", e.toString());
            }
        }
        System.exit(0);
    }

    private void run(String[] words) throws Exception {
        switch (words[0]) {
            case "serve" -> serve(words[1]);
            case "dial" -> dial(words[1], words[2]);
            case "token" -> {
                JwtSvid svid = tokens.fetchJwtSvid(words[1], Arrays.copyOfRange(words, 2, words.length));
                say("token", "id", svid.getSpiffeId().toString(), "token", svid.getToken());
            }
            case "tokens" -> say("tokens", "ids", tokens.fetchJwtSvids(words[1]).stream().map(s -> s.getSpiffeId().toString()).toList());
            case "check" -> check(words[1], words[2]);
            case "held" -> held();
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    private static synchronized void say(String event, Object... facts) {
        Map<String, Object> line = new HashMap<>();
        line.put("event", event);
        for (int i = 0; i < facts.length; i += 2) {
            line.put((String) facts[i], facts[i + 1]);
        }
        System.out.println(new Gson().toJson(line));
    }

    /** A source of this library has no news, so it is looked at. */
    private void watch() {
        BigInteger last = null;
        while (true) {
            try {
                BigInteger serial = source.getX509Svid().getLeaf().getSerialNumber();
                if (!serial.equals(last)) {
                    checked("svid");
                    last = serial;
                }
                Thread.sleep(10);
            } catch (Exception e) {
                say("error", "error", e.toString());
                return;
            }
        }
    }

    /** Verifies the chain of the default SVID up to the bundle, and tells what the test compares. */
    private void checked(String event) throws Exception {
        var svid = source.getX509Svid();
        X509SvidValidator.verifyChain(svid.getChain(), source);
        List<String> dns = new ArrayList<>();
        for (List<?> name : svid.getLeaf().getSubjectAlternativeNames()) {
            if (name.get(0).equals(2)) {
                dns.add((String) name.get(1));
            }
        }
        say(event, "id", svid.getSpiffeId().toString(), "serial", svid.getLeaf().getSerialNumber().toString(16), "dns", dns,
            "roots", source.getBundleForTrustDomain(svid.getSpiffeId().getTrustDomain()).getX509Authorities().size());
    }

    private void held() {
        try {
            checked("held");
        } catch (Exception e) {
            say("nothing", "error", e.toString());
        }
    }

    private SSLContext contextFor(String id) throws Exception {
        return SpiffeSslContextFactory.getSslContext(SslContextOptions.builder().sslProtocol("TLSv1.3").x509Source(source)
            .acceptedSpiffeIdsSupplier(() -> Set.of(SpiffeId.parse(id))).build());
    }

    private static String heard(Socket socket) throws IOException {
        byte[] buffer = new byte[100];
        int n = socket.getInputStream().read(buffer);
        if (n < 0) {
            throw new IOException("the peer closed");
        }
        return new String(buffer, 0, n);
    }

    private void serve(String id) throws Exception {
        InetAddress loopback = InetAddress.getByName("127.0.0.1");
        try (var server = (SSLServerSocket) contextFor(id).getServerSocketFactory().createServerSocket(0, 1, loopback)) {
            server.setNeedClientAuth(true);
            say("listening", "port", server.getLocalPort());
            try (Socket socket = server.accept()) {
                socket.setSoTimeout(PATIENCE);
                String said = heard(socket);
                socket.getOutputStream().write(("java heard " + said).getBytes());
                say("peer", "said", said);
            }
        }
    }

    private void dial(String address, String id) throws Exception {
        String[] parts = address.split(":");
        try (var socket = (SSLSocket) contextFor(id).getSocketFactory().createSocket(parts[0], Integer.parseInt(parts[1]))) {
            socket.setSoTimeout(PATIENCE);
            socket.getOutputStream().write("hello from java".getBytes());
            say("peer", "said", heard(socket));
        }
    }

    private interface Asked {
        JwtSvid ask() throws Exception;
    }

    /** What came of it, and why nothing: one of the two is null. */
    private record Outcome(String id, String error) {
        static Outcome of(Asked asked) {
            try {
                return new Outcome(asked.ask().getSpiffeId().toString(), null);
            } catch (Exception e) {
                return new Outcome(null, e.toString());
            }
        }
    }

    /** Asks the library, with the keys of the bundle, and the agent. */
    private void check(String audience, String token) {
        Outcome here = Outcome.of(() -> JwtSvid.parseAndValidate(token, tokens, Set.of(audience)));
        Outcome there = Outcome.of(() -> client.validateJwtSvid(token, audience));
        if (here.id == null && there.id == null) {
            say("refused", "error", here.error + "; " + there.error);
        } else if (here.id != null && here.id.equals(there.id)) {
            say("checked", "id", here.id);
        } else {
            say("error", "error", "here " + here + ", the agent " + there);
        }
    }
}
