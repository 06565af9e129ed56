"""The word lists of the quickstart's customer messages (see tickets.py for the grammar).

`{it}` is where a request names what it is about. Cues are pairs: what the customer writes, and how the
teacher's thought sums it up.
"""


def _words(text: str) -> list[str]:
    return text.split()


QUALIFIERS = _words(
    """
    amber blue crimson golden green indigo ivory lilac maroon navy olive orange purple scarlet silver
    turquoise violet white yellow bamboo canvas ceramic copper cotton glass leather linen marble oak
    rattan rubber velvet walnut wicker woollen enamel folding portable striped vintage
    """
)

NOUNS = _words(
    """
    armchair backpack basket bench blender blanket bookcase bowl bracelet bucket cabinet candle
    curtain cushion desk drawer fan hammock heater jacket kettle keyboard ladder lamp
    lantern mirror necklace pillow printer radio saddle scarf shelf slippers
    sofa speaker suitcase teapot tent toaster umbrella vase wallet wardrobe
    """
)

NAMES = _words(
    """
    Aisha Anna Ben Carlos Chloé Daniel Elif Fiona George Hana Ivan José Kate Liam Mei Nina Omar Priya Zoë
    """
)
CITIES = _words(
    """
    Bath Berlin Bristol Cardiff Dublin Exeter Glasgow Leeds Lisbon London Lyon Oslo Oxford York
    """
)
MONTHS = _words("January February March April May June July August September October November December")
LETTERS = "ABCDEFGHKLMNPRSTW"

REQUESTS: dict[str, list[str]] = {
    "refund": [
        "I would like my money back for {it}",
        "please refund {it}",
        "can I return {it} and be paid back",
        "{it} is not what I expected and I want a refund",
        "how do I get a refund for {it}",
        "please put the money for {it} back on my card",
        "I am sending {it} back and want the full price returned",
    ],
    "exchange": [
        "can I swap {it} for another size",
        "please exchange {it} for a different colour",
        "{it} is too small, can you send me a bigger one",
        "I picked the wrong size, so please change {it} for a larger one",
        "may I trade {it} for another model",
        "I want to keep the deal but get {it} in another colour",
    ],
    "delivery": [
        "where is {it}",
        "{it} has not arrived yet",
        "when will {it} be delivered",
        "the tracking page for {it} has not moved for days",
        "I am still waiting for {it}",
        "has {it} been posted",
        "the courier never came with {it}",
    ],
    "cancel": [
        "please cancel {it}",
        "I no longer want {it}, so do not send it",
        "stop {it} before it leaves your warehouse",
        "I changed my mind about {it}, please call it off",
        "I bought {it} by mistake, do not ship it",
    ],
    "damaged": [
        "{it} arrived broken",
        "{it} came with a big crack",
        "there is a dent in {it}",
        "{it} stopped working after a day",
        "I opened the box and {it} was in pieces",
        "{it} was scratched all over when I unpacked it",
    ],
    "invoice": [
        "I need an invoice for {it}",
        "please send me the receipt for {it}",
        "could you email the bill for {it}",
        "our finance team wants the tax document for {it}",
        "I cannot find the invoice for {it}",
    ],
    "address": [
        "please send {it} to a new address",
        "I have moved, so {it} should go to {city} instead",
        "the address for {it} is wrong",
        "can you deliver {it} to my office in {city}",
        "the street on the label of {it} must be changed",
    ],
}

# What to say of an intent in the thought. The wordings differ on purpose: a real teacher's do.
REASONS: dict[str, list[str]] = {
    "refund": ["wants money back", "asks to be paid back"],
    "exchange": ["wants a swap", "wants another one instead"],
    "delivery": ["asks where it is", "has not got it yet"],
    "cancel": ["does not want it sent", "calls it off"],
    "damaged": ["it is broken", "came faulty"],
    "invoice": ["needs the paper", "wants the bill"],
    "address": ["send it elsewhere", "new address"],
    "other": ["not about an order", "nothing to do with us"],
}

# Said before a request of another intent, so that a single word does not give the intent away.
DENIALS: dict[str, list[str]] = {
    "refund": ["I do not want a refund", "you can keep the money"],
    "exchange": ["I do not need an exchange", "another size would not help"],
    "delivery": ["the delivery was quick", "it is not about the tracking"],
    "cancel": ["I do not want to cancel anything"],
    "damaged": ["nothing is broken", "it arrived in one piece"],
    "invoice": ["I already have the invoice"],
    "address": ["my address is still the same"],
}

OUT_OF_SCOPE = [
    "do you have a good recipe for {food}",
    "what is the weather like in {city}",
    "are you hiring in {city}",
    "can you help my son with his homework",
    "who won the match in {city}",
    "do you know a good dentist in {city}",
    "write me a poem about a {product}",
    "which museum should we visit in {city}",
    "how long should I boil {food}",
    "what is the best way to clean a {product}",
    "I applied for a job at your shop, reference {number}",
    "what would a {product} look like in a painting",
    "can you translate a letter into Spanish for me",
]
FOODS = ["pancakes", "lentils", "dumplings", "noodles", "rhubarb", "potatoes", "mushrooms"]

URGENT = [
    ("I need this sorted today", "today"),
    ("this is urgent", "urgent"),
    ("as soon as possible please", "as soon as possible"),
    ("my guests arrive tonight", "guests tonight"),
    ("we fly tomorrow morning", "flying tomorrow"),
    ("it is a present for a birthday tomorrow", "birthday tomorrow"),
    ("I am running out of time", "out of time"),
    ("this cannot wait", "cannot wait"),
    ("please hurry", "hurry"),
    ("the wedding is the day after tomorrow", "wedding near"),
]
RELAXED = [
    ("there is no rush", "no rush"),
    ("whenever you have time", "any time"),
    ("it can wait", "can wait"),
    ("no hurry at all", "no hurry"),
    ("next month is early enough", "next month"),
    ("it is not urgent", "not urgent"),
    ("the birthday is only in the summer", "birthday far off"),
    ("take your time", "take your time"),
    ("I do not need it before we fly next year", "flying next year"),
]
# No cue, though some words are those of one.
NEUTRAL = [
    "thank you for the quick answer last time",
    "I hope you can help",
    "I bought it the day before a wedding",
    "the birthday was lovely by the way",
    "your shop was in a hurry that day",
    "I have been a customer for years",
    "my sister told me about your shop",
    "I look forward to your answer",
]
UNSAID = ["no time given", "nothing on time"]

GREETINGS = [
    "hello",
    "hi",
    "dear team",
    "good morning",
    "hi there",
    "hey",
    "good evening",
    "to whom it may concern",
]
THANKS = ["thanks", "thank you", "best wishes", "cheers", "kind regards", "many thanks"]
ASIDES = [
    "I paid {price} for it",
    "I bought it on {day} {month}",
    "you can call me on {phone}",
    "my customer number is {number}",
    "I live in {city}",
    "my husband {name} chose it",
    "I wrote to {name} on {day} {month} already",
    "my last bill was {price}",
]
FINE = ["is fine", "is great", "works well", "came on time", "can stay as it is", "is no problem"]
ORDER_FORMS = ["order {o}", "order number {o}", "order no. {o}", "#{o}", "ref {o}", "order #{o}"]
PARCELS = ["my order", "my parcel", "what I ordered", "my purchase"]
