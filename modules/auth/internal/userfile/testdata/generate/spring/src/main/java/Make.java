import java.util.Map;
import java.util.TreeMap;
import org.springframework.security.crypto.factory.PasswordEncoderFactories;
import org.springframework.security.crypto.password.DelegatingPasswordEncoder;
import org.springframework.security.crypto.password.PasswordEncoder;

/** Writes the record of an account for each encoder that Spring Security delegates to. */
public class Make {
    public static void main(String[] args) throws Exception {
        var field = DelegatingPasswordEncoder.class.getDeclaredField("idToPasswordEncoder");
        field.setAccessible(true);
        @SuppressWarnings("unchecked")
        var encoders = new TreeMap<>((Map<String, PasswordEncoder>) field.get(PasswordEncoderFactories.createDelegatingPasswordEncoder()));
        for (var id : encoders.keySet()) {
            if (id.equals("MD4")) {
                continue; // the JDK has none
            }
            var hash = new DelegatingPasswordEncoder(id, encoders).encode("a quite good password");
            System.out.printf("{\"username\":\"spring.%s\",\"password_hash\":\"%s\"}%n", id, hash);
        }
    }
}
