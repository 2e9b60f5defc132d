-- Claims an event. KEYS: its hash. ARGV: digest of its content, token, lease and retention in milliseconds.
-- Redis's own time, so that all processes share one clock.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'content', 'state', 'until', 'attempts')
if known[1] and known[1] ~= ARGV[1] then
    return {'other', '0'}
end
if known[2] == 'done' then
    return {'done', '0'}
end
if known[2] == 'claimed' and now < tonumber(known[3]) then
    return {'busy', known[3]}
end
local attempts = string.format('%.0f', (tonumber(known[4]) or 0) + 1)
local ends = string.format('%.0f', now + tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'content', ARGV[1], 'state', 'claimed', 'until', ends, 'attempts', attempts, 'token', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {'new', attempts}
