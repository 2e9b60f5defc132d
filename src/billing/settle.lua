-- Moves an event to another state. KEYS: its hash. ARGV: the token of the claim, or nothing for an event that is done; the
-- state; what is taken off its attempts, or `all`. Answers 1 when it did.
local known = redis.call('HMGET', KEYS[1], 'state', 'token', 'attempts')
if ARGV[1] == '' then
    if known[1] ~= 'done' then
        return 0
    end
elseif known[1] ~= 'claimed' or known[2] ~= ARGV[1] then
    return 0
end
local attempts = '0'
if ARGV[3] ~= 'all' then
    attempts = string.format('%.0f', math.max(0, (tonumber(known[3]) or 0) - tonumber(ARGV[3])))
end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'attempts', attempts)
return 1
