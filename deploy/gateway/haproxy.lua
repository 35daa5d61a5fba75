-- What haproxy.cfg loads: asks authctl about a request. docs/gateway.md explains it.
-- Afterwards txn.status is the status of the answer, and txn.challenge its WWW-Authenticate.
core.register_action("authctl", { "http-req" }, function(txn)
    local headers = txn.http:req_get_headers()
    local ask = { ["x-forwarded-for"] = { txn.f:src() } }
    if headers["authorization"] then
        ask["authorization"] = { headers["authorization"][0] }
    end

    -- Remove all such headers of the client, since backends may confuse Auth_User or Auth.User with Auth-User.
    for name in pairs(headers) do
        if name:match("^auth[^a-z]") then
            txn.http:req_del_header(name)
        end
    end

    -- Four times at most if nothing answers.
    local answer = core.httpclient():get({ url = "http://127.0.0.1:8080/oauth2/check", headers = ask, timeout = 2000 })
    txn:set_var("txn.status", answer.status)
    if answer.status == 200 then
        for _, name in ipairs({ "auth-user", "auth-session", "auth-username" }) do
            txn.http:req_set_header(name, answer.headers[name][0])
        end
    elseif answer.status == 401 then
        txn:set_var("txn.challenge", answer.headers["www-authenticate"][0])
    end
end)
