// Tries Nimbus.java and Spring.java, which docs/verifying_test.go takes out of the page, on the
// vectors: Try FILE URL_OF_THE_KEYS. Neither follows what has ended.

import com.nimbusds.jose.jwk.source.JWKSourceBuilder;
import com.nimbusds.jose.proc.SecurityContext;
import com.nimbusds.jose.util.JSONObjectUtils;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.*;
import java.util.*;

class Try {
    private interface Check {
        Object of(String token) throws Exception;
    }

    /** A clock that is set. */
    private static class Moment extends Clock {
        Instant now;

        @Override
        public Instant instant() {
            return now;
        }

        @Override
        public ZoneId getZone() {
            return ZoneOffset.UTC;
        }

        @Override
        public Clock withZone(ZoneId zone) {
            return this;
        }
    }

    public static void main(String[] args) throws Exception {
        var all = JSONObjectUtils.parse(Files.readString(Path.of(args[0])));
        var issuer = (String) all.get("issuer");
        var audience = (String) all.get("audience");
        var clock = new Moment();
        var nimbus = Nimbus.processor(
                JWKSourceBuilder.<SecurityContext>create(URI.create(args[1]).toURL()).build(), issuer, audience, clock);
        var spring = Spring.decoder(args[1], issuer, audience, clock);
        var checks = new LinkedHashMap<String, Check>();
        checks.put("nimbus", token -> nimbus.process(token, null));
        checks.put("spring", spring::decode);
        for (var check : checks.entrySet()) {
            for (var one : (List<?>) all.get("vectors")) {
                var vector = (Map<?, ?>) one;
                clock.now = Instant.parse((String) vector.get("time"));
                var verdict = "accept";
                try {
                    check.getValue().of((String) vector.get("token"));
                } catch (Exception e) {
                    verdict = "refuse";
                }
                System.out.println(JSONObjectUtils.toJSONString(
                        Map.of("name", vector.get("name"), "verdict", verdict, "by", check.getKey())));
            }
        }
    }
}
