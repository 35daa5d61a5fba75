<?php
// Makes ../../php.ndjson with PHP's own functions and libsodium: php make.php
$password = "a quite good password";
$hashes = [
    "php.default" => password_hash($password, PASSWORD_DEFAULT, ["cost" => 4]),
    "php.argon2id" => password_hash($password, PASSWORD_ARGON2ID, ["memory_cost" => 8192, "time_cost" => 2]),
    "php.argon2i" => password_hash($password, PASSWORD_ARGON2I, ["memory_cost" => 8192, "time_cost" => 2]),
    "php.sodium" => sodium_crypto_pwhash_str($password, 2, 8 << 20),
    "php.wordpress" => '$wp' . password_hash(base64_encode(hash_hmac("sha384", trim($password), "wp-sha384", true)), PASSWORD_BCRYPT, ["cost" => 4]),
];
$lines = "";
foreach ($hashes as $username => $hash) {
    $lines .= json_encode(["username" => $username, "password_hash" => $hash], JSON_UNESCAPED_SLASHES) . "\n";
}
file_put_contents(__DIR__ . "/../../php.ndjson", $lines);
