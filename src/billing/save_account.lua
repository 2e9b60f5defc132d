-- Writes an account. KEYS: its hash. ARGV: the version that is replaced, the next one, the account. Answers 1 when it did.
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'account', ARGV[3])
return 1
