// Tries Nimbus.java, Spring.java, Ended.java and Follow.java, which docs/verifying_test.go takes out
// of the page.

import com.nimbusds.jose.util.JSONObjectUtils;
import java.io.*;
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
        var settings = JSONObjectUtils.parse(args[0]);
        if (settings.containsKey("vectors")) vectors(settings);
        else follow(settings);
    }

    private static void say(Object name, String by, Check check, String token) {
        var verdict = "accept";
        try {
            check.of(token);
        } catch (Exception e) {
            verdict = "refuse: " + e;
        }
        System.out.println(JSONObjectUtils.toJSONString(Map.of("name", name, "verdict", verdict, "by", by)));
    }

    private static void vectors(Map<String, Object> settings) throws Exception {
        var all = JSONObjectUtils.parse(Files.readString(Path.of((String) settings.get("vectors"))));
        var clock = new Moment();
        var keys = Nimbus.keys(URI.create((String) settings.get("jwks")).toURL());
        for (var one : (List<?>) all.get("vectors")) {
            var vector = (Map<?, ?>) one;
            clock.now = Instant.parse((String) vector.get("time"));
            var ended = new Ended();
            var feed = (Map<?, ?>) ((Map<?, ?>) all.get("feeds")).get(vector.get("feed"));
            for (var entry : (List<?>) feed.get("revocations")) ended.add((Map<?, ?>) entry);
            var nimbus = Nimbus.processor(keys, ended, (String) all.get("issuer"), (String) all.get("audience"), clock);
            var token = (String) vector.get("token");
            say(vector.get("name"), "nimbus", text -> nimbus.process(text, null), token);
            say(vector.get("name"), "spring", Spring.decoder(nimbus)::decode, token);
        }
    }

    private static void follow(Map<String, Object> settings) throws Exception {
        var ended = new Ended();
        var following = new Thread(new Follow(ended, (String) settings.get("feed"), (String) settings.get("id"),
                (String) settings.get("secret"), (String) settings.get("name")));
        following.start();
        var spring = Spring.decoder(Nimbus.processor(Nimbus.keys(URI.create((String) settings.get("jwks")).toURL()), ended,
                (String) settings.get("issuer"), (String) settings.get("audience"), Clock.systemUTC()));
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (var token = lines.readLine(); token != null; token = lines.readLine()) {
            while (ended.lag().compareTo(Duration.ofMinutes(1)) > 0) Thread.sleep(20);
            say("", "spring", spring::decode, token);
        }
        following.interrupt();
        following.join();
    }
}
